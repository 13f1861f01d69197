# Interrupts: the timer and the first disk; everything else is masked.

interrupts_init:
        mov edi, IDT_ADDRESS
        mov ecx, 256
1:      mov eax, offset on_exception
        cmp ecx, 256 - IRQ0_VECTOR
        ja 2f
        mov eax, offset on_other_irq
2:      call set_gate
        add edi, 8
        dec ecx
        jnz 1b
        mov edi, IDT_ADDRESS + 8 * IRQ0_VECTOR
        mov eax, offset on_tick
        call set_gate
        mov edi, IDT_ADDRESS + 8 * IRQ14_VECTOR
        mov eax, offset on_disk
        call set_gate
        mov edi, IDT_ADDRESS + 8 * IRQ15_VECTOR
        mov eax, offset on_spurious
        call set_gate
        lidt [idt_pointer]

        mov al, 0x11                    # both PICs: edge triggered, cascaded, four words follow
        out PIC1, al
        out PIC2, al
        mov al, IRQ0_VECTOR
        out PIC1 + 1, al
        mov al, IRQ0_VECTOR + 8
        out PIC2 + 1, al
        mov al, 4
        out PIC1 + 1, al
        mov al, 2
        out PIC2 + 1, al
        mov al, 1
        out PIC1 + 1, al
        out PIC2 + 1, al
        mov al, 0xfa                    # open: IRQ 0 and the cascade
        out PIC1 + 1, al
        mov al, 0xbf                    # open: IRQ 14
        out PIC2 + 1, al

        mov al, 0x34                    # channel 0, both bytes, rate generator
        out 0x43, al
        mov al, PIT_DIVISOR & 0xff
        out 0x40, al
        mov al, PIT_DIVISOR >> 8
        out 0x40, al
        ret

# In: edi = the gate, eax = the handler.
set_gate:
        mov [edi], ax
        mov word ptr [edi + 2], 8
        mov word ptr [edi + 4], 0x8e00
        push eax
        shr eax, 16
        mov [edi + 6], ax
        pop eax
        ret

on_tick:
        inc dword ptr [ticks]
        push eax
        mov al, 0x20
        out PIC1, al
        pop eax
        iretd

on_disk:
        push eax
        push edx
        mov edx, IDE + 7
        in al, dx                       # reading the status takes the disk's interrupt away
        mov [disk_status], al
        mov byte ptr [disk_done], 1
        inc dword ptr [disk_interrupts]
        mov al, 0x20
        out PIC2, al
        out PIC1, al
        pop edx
        pop eax
        iretd

on_spurious:                            # of the second PIC: the first one knows nothing of it and waits for its end
        push eax
        mov al, 0x20
        out PIC1, al
        pop eax
on_other_irq:                           # spurious of the first PIC: everything else is masked
        iretd

on_exception:
        mov esi, offset text_exception
        call put_text
1:      sti
        hlt
        jmp 1b

text_exception: .asciz "xen-guest: processor exception\r\n"

        .balign 8
idt_pointer:
        .word 256 * 8 - 1
        .long IDT_ADDRESS

        .balign 4
ticks:          .long 0
