# A guest that proves its device model works: disk, interrupts and serial port, then seconds for ever.
#
# Sector 0 is the boot sector. It has the BIOS load the sectors after it and enters 32-bit protected mode. From there
# nothing is left of the BIOS: the code drives the hardware itself.
#
#   PIT, IRQ 0          HZ ticks a second, which the seconds are counted from
#   IDE, IRQ 14         every disk transfer is programmed I/O whose completion arrives as an interrupt
#   ATAPI, second IDE   a CD-ROM as the secondary master, read when asked for, by polling
#   UART at 0x3f8       all output, by polling
#
# What it prints, each line after "xen-guest: ":
#
#   start boot=N                        N is kept in the scratch sector, so writes reached the disk of earlier boots
#   disk ok sum=0xXXXXXXXX sectors=N    every pattern sector held exactly what its number says
#   alive second=N disk=ok irq=N        once a second; the scratch sector was written and read back in between
#   answer second=N                     for each '?' that arrives on the serial port
#   cd holds TEXT, cd is not readable   for each '#' that arrives: the text that the CD-ROM begins with
#
# It waits with interrupts enabled (sti; hlt): Xen shuts a guest down that halts with interrupts off.
#
# The caller defines STAGE_SECTORS, HZ, PIT_DIVISOR, PATTERN_FIRST, PATTERN_STRIDE, PATTERN_COUNT and SCRATCH_SECTOR.

        .intel_syntax noprefix

        .equ STAGE_ADDRESS, 0x7e00      # right behind the boot sector
        .equ IDT_ADDRESS,   0x5000
        .equ STACK_TOP,     0x7000
        .equ BUFFER,        0x10000     # one sector
        .equ COM1,          0x3f8
        .equ IDE,           0x1f0
        .equ IDE_CONTROL,   0x3f6
        .equ CD,            0x170
        .equ CD_CONTROL,    0x376
        .equ CD_TRIES,      8
        .equ CD_TEXT,       40          # at most so many bytes of its text are printed
        .equ PIC1,          0x20
        .equ PIC2,          0xa0
        .equ IRQ0_VECTOR,   0x20
        .equ IRQ14_VECTOR,  0x2e
        .equ IRQ15_VECTOR,  0x2f
        .equ DISK_TIMEOUT,  HZ * 20

# ---------------------------------------------------------------------------------------------------- boot sector
        .code16
        .globl _start
_start: cli
        .byte 0xea                      # far jump, so that cs is 0 whatever the BIOS chose
        .word real, 0
real:   xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, STACK_TOP
        cld
        sti
        mov si, offset packet
        mov ah, 0x42                    # extended read; dl still holds the drive
        int 0x13
        jc bios_failed
        cli
        lgdt [gdt_pointer]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0xea
        .word protected, 8

bios_failed:
        mov si, offset bios_message
1:      lodsb
        test al, al
        jz 2f
        mov dx, COM1
        out dx, al
        mov cx, 0x4000                  # the UART is not set up yet: give it time rather than trust its status
3:      loop 3b
        jmp 1b
2:      sti
        hlt
        jmp 2b

bios_message:
        .asciz "\r\nxen-guest: the BIOS could not read the disk\r\n"

        .balign 4
packet: .byte 16, 0
        .word STAGE_SECTORS
        .word STAGE_ADDRESS, 0
        .quad 1

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff        # 8: code, flat
        .quad 0x00cf92000000ffff        # 16: data, flat
gdt_pointer:
        .word gdt_pointer - gdt - 1
        .long gdt

        .org 510
        .byte 0x55, 0xaa

# ------------------------------------------------------------------------------------------------- protected mode
        .code32
protected:
        mov ax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, STACK_TOP
        call serial_init
        call interrupts_init
        sti

        mov eax, SCRATCH_SECTOR
        call disk_read
        jc 1f
        cmp dword ptr [BUFFER], 0x474e4558      # "XENG"
        jne 1f
        mov eax, [BUFFER + 4]
        mov [boots], eax
1:      inc dword ptr [boots]
        mov esi, offset text_start
        call put_text
        mov eax, [boots]
        call put_decimal
        call put_newline

        call disk_check
        jc disk_is_bad
        mov esi, offset text_disk_ok
        call put_text
        mov eax, [sum]
        call put_hex
        mov esi, offset text_sectors
        call put_text
        mov eax, PATTERN_COUNT
        call put_decimal
        call put_newline

        mov eax, [ticks]
        add eax, HZ
        mov [next_second], eax
forever:
        call serial_input
        cli
        mov eax, [ticks]
        sub eax, [next_second]
        jns 1f                          # the difference, not the values: ticks may wrap
        sti                             # takes effect after hlt has begun, so no tick is slept through
        hlt
        jmp forever
1:      sti
        add dword ptr [next_second], HZ
        inc dword ptr [seconds]
        call scratch_check
        mov ebx, offset text_good
        jnc 2f
        mov ebx, offset text_bad
2:      mov esi, offset text_alive
        call put_text
        mov eax, [seconds]
        call put_decimal
        mov esi, ebx
        call put_text
        mov eax, [disk_interrupts]
        call put_decimal
        call put_newline
        jmp forever

disk_is_bad:                            # eax: the sector
        mov ebx, eax
        mov esi, offset text_disk_bad
        call put_text
        mov eax, ebx
        call put_decimal
        mov esi, offset text_status
        call put_text
        movzx eax, byte ptr [disk_status]
        call put_hex
        call put_newline
1:      sti
        hlt
        jmp 1b

# ------------------------------------------------------------------------------------------------------------ disk

# Compares every pattern sector with what its number says it holds, and adds all of it up.
# Out: carry set and eax = the sector that is not as it should be.
disk_check:
        mov dword ptr [sum], 0
        mov dword ptr [sector], PATTERN_FIRST
        mov dword ptr [left], PATTERN_COUNT
1:      mov eax, [sector]
        call disk_read
        jc 9f
        mov ebp, [sector]
        inc ebp
        imul ebp, ebp, 0x9e3779b9
        mov esi, BUFFER
        mov ecx, 128
2:      mov eax, ebp                    # one step of xorshift32
        shl eax, 13
        xor ebp, eax
        mov eax, ebp
        shr eax, 17
        xor ebp, eax
        mov eax, ebp
        shl eax, 5
        xor ebp, eax
        lodsd
        cmp eax, ebp
        jne 9f
        rol dword ptr [sum], 1
        add [sum], eax
        dec ecx
        jnz 2b
        add dword ptr [sector], PATTERN_STRIDE
        dec dword ptr [left]
        jnz 1b
        clc
        ret
9:      mov eax, [sector]
        stc
        ret

# Writes boots and seconds to the scratch sector, has the disk flush it, clears the buffer and reads it back.
# Out: carry set when it did not come back.
scratch_check:
        mov edi, BUFFER
        mov ecx, 128
        xor eax, eax
        rep stosd
        mov dword ptr [BUFFER], 0x474e4558
        mov eax, [boots]
        mov [BUFFER + 4], eax
        mov eax, [seconds]
        mov [BUFFER + 8], eax
        not eax
        mov [BUFFER + 12], eax
        mov eax, SCRATCH_SECTOR
        call disk_write
        jc 9f
        mov edi, BUFFER
        mov ecx, 128
        xor eax, eax
        rep stosd
        mov eax, SCRATCH_SECTOR
        call disk_read
        jc 9f
        mov eax, [seconds]
        cmp [BUFFER + 8], eax
        jne 9f
        not eax
        cmp [BUFFER + 12], eax
        jne 9f
        clc
        ret
9:      stc
        ret

# In: eax = sector. Out: 512 bytes at BUFFER, or carry set.
disk_read:
        mov bl, 0x20                    # READ SECTORS
        call disk_command
        jc 9f
        call disk_wait
        jc 9f
        test byte ptr [disk_status], 0x08
        jz 9f
        mov edi, BUFFER
        mov ecx, 128
        mov edx, IDE
        rep insd
        clc
        ret
9:      stc
        ret

# In: eax = sector, 512 bytes at BUFFER. Out: carry set on failure.
disk_write:
        mov bl, 0x30                    # WRITE SECTORS: the first block is asked for by status, not by interrupt
        call disk_command
        jc 9f
        mov ecx, 100000
        mov edx, IDE_CONTROL
1:      in al, dx                       # alternate status: does not acknowledge the interrupt
        test al, 0x80
        jnz 2f
        test al, 0x08
        jnz 3f
2:      dec ecx
        jnz 1b
        jmp 9f
3:      mov esi, BUFFER
        mov ecx, 128
        mov edx, IDE
        rep outsd
        call disk_wait
        jc 9f
        xor eax, eax
        mov bl, 0xe7                    # FLUSH CACHE
        call disk_command
        jc 9f
        jmp disk_wait
9:      stc
        ret

# Sends command bl for one sector, eax, to the primary master. Out: carry set when the disk stays busy.
disk_command:
        push eax
        mov ecx, 100000
        mov edx, IDE_CONTROL
1:      in al, dx
        test al, 0x88
        jz 2f
        dec ecx
        jnz 1b
        pop eax
        stc
        ret
2:      xor eax, eax
        out dx, al                      # interrupts on
        mov byte ptr [disk_done], 0
        mov edx, IDE + 2
        mov al, 1
        out dx, al
        mov eax, [esp]
        inc edx
        out dx, al                      # sector bits 0..7
        inc edx
        shr eax, 8
        out dx, al                      # 8..15
        inc edx
        shr eax, 8
        out dx, al                      # 16..23
        inc edx
        shr eax, 8
        and al, 0x0f
        or al, 0xe0                     # LBA, master, 24..27
        out dx, al
        inc edx
        mov al, bl
        out dx, al
        pop eax
        clc
        ret

# Waits for the disk's interrupt. Out: carry set on an error reported by the disk or after DISK_TIMEOUT ticks.
disk_wait:
        mov ecx, [ticks]
        add ecx, DISK_TIMEOUT
1:      cli
        cmp byte ptr [disk_done], 0
        jne 2f
        mov eax, [ticks]
        sub eax, ecx
        jns 9f
        sti
        hlt
        jmp 1b
2:      mov byte ptr [disk_done], 0
        sti
        test byte ptr [disk_status], 0x21       # ERR, DF
        jnz 9f
        clc
        ret
9:      sti
        stc
        ret

# ---------------------------------------------------------------------------------------------------------- CD-ROM

# Prints what the medium begins with. A new medium is announced by errors, each gone when its sense was asked for.
cd_tell:
        mov dword ptr [left], CD_TRIES
1:      mov esi, offset cd_read_packet
        call cd_command
        jnc 2f
        mov esi, offset cd_sense_packet
        call cd_command
        dec dword ptr [left]
        jnz 1b
        mov esi, offset text_cd_none
        jmp put_text
2:      mov esi, offset text_cd
        call put_text
        mov byte ptr [BUFFER + CD_TEXT], 0
        mov esi, BUFFER
        call put_text
        jmp put_newline

# In: esi = a packet. Out: its data at BUFFER, or carry set.
cd_command:
        mov edx, CD_CONTROL
        mov al, 2                       # no interrupts
        out dx, al
        mov edx, CD + 6
        mov al, 0xa0                    # master
        out dx, al
        call cd_wait                    # an error here is the last command's
        mov edx, CD + 1
        xor eax, eax
        out dx, al                      # no DMA
        mov edx, CD + 4
        out dx, al
        inc edx
        mov al, 0x08                    # 2048 bytes at a time
        out dx, al
        mov edx, CD + 7
        mov al, 0xa0                    # PACKET
        out dx, al
        call cd_wait
        jc 2f
        mov ecx, 6
        mov edx, CD
        rep outsw
        mov edi, BUFFER
1:      call cd_wait
        jc 2f
        test al, 0x08
        jz 2f
        xor ecx, ecx
        mov edx, CD + 4
        in al, dx
        mov cl, al
        inc edx
        in al, dx
        mov ch, al
        shr ecx, 1
        mov edx, CD
        rep insw
        jmp 1b
2:      ret

# Out: al = the status when the drive is no longer busy; carry set on an error.
cd_wait:
        mov ecx, 1000000
        mov edx, CD + 7
1:      in al, dx
        test al, 0x80
        jz 2f
        dec ecx
        jnz 1b
3:      stc
        ret
2:      test al, 0x01                   # takes the carry away
        jnz 3b
        ret

# ------------------------------------------------------------------------------------------------------ interrupts

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

# ---------------------------------------------------------------------------------------------------- serial port

serial_init:
        mov edx, COM1 + 1
        xor eax, eax
        out dx, al                      # no interrupts
        mov edx, COM1 + 3
        mov al, 0x80
        out dx, al
        mov edx, COM1
        mov al, 1                       # 115200
        out dx, al
        inc edx
        xor eax, eax
        out dx, al
        mov edx, COM1 + 3
        mov al, 0x03                    # 8n1
        out dx, al
        dec edx
        mov al, 0x07                    # FIFOs on and empty
        out dx, al
        mov edx, COM1 + 4
        mov al, 0x03                    # DTR, RTS
        out dx, al
        mov byte ptr [fifo_room], 0
        ret

# In: al. The status is looked at once for each FIFO of bytes: every port access is a trip to the device model.
put_byte:
        push edx
        push eax
        cmp byte ptr [fifo_room], 0
        jne 2f
        mov edx, COM1 + 5
1:      in al, dx
        test al, 0x20
        jz 1b
        mov byte ptr [fifo_room], 16
2:      dec byte ptr [fifo_room]
        pop eax
        mov edx, COM1
        out dx, al
        pop edx
        ret

# In: esi = text that ends in a zero byte.
put_text:
1:      lodsb
        test al, al
        jz 2f
        call put_byte
        jmp 1b
2:      ret

put_newline:
        mov al, 13
        call put_byte
        mov al, 10
        jmp put_byte

# In: eax.
put_decimal:
        push ebx
        mov ebx, 10
        xor ecx, ecx
1:      xor edx, edx
        div ebx
        push edx
        inc ecx
        test eax, eax
        jnz 1b
2:      pop eax
        add al, '0'
        call put_byte
        loop 2b
        pop ebx
        ret

# In: eax. Out: 0x and eight digits.
put_hex:
        push ebx
        mov ebx, eax
        mov al, '0'
        call put_byte
        mov al, 'x'
        call put_byte
        mov ecx, 8
1:      rol ebx, 4
        mov al, bl
        and al, 15
        cmp al, 10
        jb 2f
        add al, 'a' - '0' - 10
2:      add al, '0'
        call put_byte
        loop 1b
        pop ebx
        ret

# Answers a '?' and a '#'. Nothing this guest prints has one, so a terminal that echoes cannot start a conversation with it.
serial_input:
        mov edx, COM1 + 5
        in al, dx
        test al, 1
        jz 1f
        mov edx, COM1
        in al, dx
        cmp al, '#'
        je 2f
        cmp al, '?'
        jne serial_input
        mov esi, offset text_answer
        call put_text
        mov eax, [seconds]
        call put_decimal
        call put_newline
        jmp serial_input
2:      call cd_tell
        jmp serial_input
1:      ret

# ------------------------------------------------------------------------------------------------------------ data

text_start:     .asciz "\r\nxen-guest: start boot="
text_disk_ok:   .asciz "xen-guest: disk ok sum="
text_sectors:   .asciz " sectors="
text_disk_bad:  .asciz "xen-guest: disk BAD sector="
text_status:    .asciz " status="
text_alive:     .asciz "xen-guest: alive second="
text_good:      .asciz " disk=ok irq="
text_bad:       .asciz " disk=BAD irq="
text_answer:    .asciz "xen-guest: answer second="
text_cd:        .asciz "xen-guest: cd holds "
text_cd_none:   .asciz "xen-guest: cd is not readable\r\n"
text_exception: .asciz "xen-guest: processor exception\r\n"

cd_read_packet: .byte 0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0     # READ(10): one block, the first
cd_sense_packet:.byte 0x03, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0    # REQUEST SENSE

        .balign 8
idt_pointer:
        .word 256 * 8 - 1
        .long IDT_ADDRESS

        .balign 4
ticks:          .long 0
next_second:    .long 0
seconds:        .long 0
boots:          .long 0
sum:            .long 0
sector:         .long 0
left:           .long 0
disk_interrupts:.long 0
disk_done:      .byte 0
disk_status:    .byte 0
fifo_room:      .byte 0
