# A boot loader for Linux on an emulated PIIX3 IDE disk: by the BIOS as far as it must, by bus-master DMA from there.
#
# Sector 0 has the BIOS load the sectors after it and asks it for the memory map. In protected mode the loads of the
# caller's table are done: each moves sectors to where they belong and fills up with zeros. Then the kernel, a plain ELF
# file whose segments the table names, is entered as Linux's 64-bit boot protocol has it (Documentation/arch/x86/boot.rst):
# long mode, the first GiB mapped to itself, interrupts off, the boot parameters' address in rsi.
#
# DMA because a guest's port access takes a thousand times as long as its memory access: one command moves up to 1 MiB.
#
# The caller defines STAGE_SECTORS, PARAMETERS and LOADS (addresses within what is loaded) and ENTRY. A load is four words:
# first sector, address, sectors, bytes of zeros behind them; one without sectors ends the table.

        .intel_syntax noprefix

        .equ STAGE_ADDRESS, 0x7e00      # right behind the boot sector
        .equ STACK_TOP,     0x7000
        .equ PML4,          0x1000      # then the table of 1 GiB parts, then that of 2 MiB pages
        .equ PRD,           0x4000      # what the DMA engine reads: address and length of each piece
        .equ E820_COUNT,    PARAMETERS + 0x1e8
        .equ E820_TABLE,    PARAMETERS + 0x2d0
        .equ E820_MOST,     128
        .equ COM1,          0x3f8
        .equ IDE,           0x1f0
        .equ PIIX3_IDE,     0x80000900  # PCI 00:01.1, as the address port takes it
        .equ MOST,          2048        # sectors in one command

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
        mov bx, offset no_stage
        jc failed16

        xor ebx, ebx
        xor bp, bp
        mov di, offset E820_TABLE
1:      mov eax, 0xe820
        mov ecx, 20
        mov edx, 0x534d4150             # "SMAP"
        int 0x15
        jc 2f
        cmp eax, 0x534d4150
        jne 2f
        add di, 20
        inc bp
        cmp bp, E820_MOST
        je 2f
        test ebx, ebx
        jnz 1b
2:      mov ax, bp
        mov [E820_COUNT], al

        cli
        in al, 0x92                     # address line 20
        or al, 2
        and al, 0xfe
        out 0x92, al
        lgdt [gdt_pointer]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0xea
        .word protected, 8

failed16:
        mov si, bx
1:      lodsb
        test al, al
        jz 2f
        mov dx, COM1
        out dx, al
        jmp 1b
2:      sti
        hlt
        jmp 2b

no_stage:
        .asciz "\r\nlinux-loader: the BIOS could not read the disk\r\n"

        .balign 4
packet: .byte 16, 0
        .word STAGE_SECTORS
        .word STAGE_ADDRESS, 0
        .quad 1

        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff        # 0x08: code, 32 bits
        .quad 0x00af9a000000ffff        # 0x10: code, 64 bits
        .quad 0x00cf92000000ffff        # 0x18: data
gdt_pointer:
        .word gdt_pointer - gdt - 1
        .long gdt

        .org 446                        # the partition table, which the caller writes
        .org 510
        .byte 0x55, 0xaa

# ------------------------------------------------------------------------------------------------- protected mode
        .code32
protected:
        mov ax, 0x18
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, STACK_TOP
        mov esi, offset hello
        call print

        mov eax, PIIX3_IDE
        call pci_read
        mov esi, offset no_controller
        cmp eax, 0x70108086
        jne failed
        mov eax, PIIX3_IDE + 0x20       # the bus master's ports
        call pci_read
        and eax, 0xfffc
        mov [master], eax
        mov eax, PIIX3_IDE + 4
        call pci_read
        or eax, 5                       # ports answer, memory may be written
        out dx, eax

        mov ebx, offset LOADS
load:   mov ebp, [ebx + 8]              # sectors still to come
        test ebp, ebp
        jz enter_linux
        mov eax, [ebx]
        mov [sector], eax
        mov edi, [ebx + 4]
part:   mov ecx, ebp
        cmp ecx, MOST
        jbe 1f
        mov ecx, MOST
1:      call read
        sub ebp, ecx
        add [sector], ecx
        shl ecx, 9
        add edi, ecx
        test ebp, ebp
        jnz part
        mov ecx, [ebx + 12]
        xor eax, eax
        rep stosb
        add ebx, 16
        jmp load

# Reads ecx sectors from [sector] on to edi; keeps both, ebx and ebp.
read:   push ecx
        push edi
        mov esi, PRD                    # no piece crosses a 64 KiB boundary
        mov edx, ecx
        shl edx, 9
1:      mov eax, edi
        movzx ecx, di
        neg ecx
        add ecx, 0x10000
        cmp ecx, edx
        jbe 2f
        mov ecx, edx
2:      mov [esi], edi
        movzx eax, cx                   # 64 KiB are written as 0
        mov [esi + 4], eax
        add esi, 8
        add edi, ecx
        sub edx, ecx
        jnz 1b
        or dword ptr [esi - 4], 0x80000000

        mov edx, [master]
        xor eax, eax
        out dx, al
        add edx, 4
        mov eax, PRD
        out dx, eax
        sub edx, 2
        mov al, 0x66                    # forgets an earlier error and interrupt
        out dx, al

        mov ecx, [esp + 4]
        mov edx, IDE + 6
        mov al, 0x40                    # the master; sectors by their numbers
        out dx, al
        mov edx, IDE + 2                # 48-bit addresses: the upper halves first
        mov al, ch
        out dx, al
        inc edx
        mov al, [sector + 3]
        out dx, al
        xor eax, eax
        inc edx
        out dx, al
        inc edx
        out dx, al
        mov edx, IDE + 2
        mov al, cl
        out dx, al
        inc edx
        mov al, [sector]
        out dx, al
        inc edx
        mov al, [sector + 1]
        out dx, al
        inc edx
        mov al, [sector + 2]
        out dx, al
        mov edx, IDE + 7
        mov al, 0x25                    # read DMA ext
        out dx, al
        mov edx, [master]
        mov al, 9                       # towards memory, go
        out dx, al
        add edx, 2
3:      in al, dx
        test al, 1
        jnz 3b
        mov ah, al
        sub edx, 2
        xor al, al
        out dx, al
        mov edx, IDE + 7
        in al, dx
        mov esi, offset read_failed
        test ax, 0x2a9                  # the engine's error; busy, fault, data wanted, error
        jnz failed
        pop edi
        pop ecx
        ret

# Register eax of a PCI function; leaves the data port in dx.
pci_read:
        mov edx, 0xcf8
        out dx, eax
        mov edx, 0xcfc
        in eax, dx
        ret

failed: call print
        sti
1:      hlt
        jmp 1b

print:  lodsb
        test al, al
        jz 2f
        mov ah, al
        mov edx, COM1 + 5
1:      in al, dx
        test al, 0x20
        jz 1b
        mov al, ah
        mov edx, COM1
        out dx, al
        jmp print
2:      ret

hello:  .asciz "linux-loader: reading\r\n"
no_controller:
        .asciz "linux-loader: no PIIX3 IDE at 00:01.1\r\n"
read_failed:
        .asciz "linux-loader: the disk could not be read\r\n"
        .balign 4
master: .long 0
sector: .long 0

# ------------------------------------------------------------------------------------------------------ long mode
enter_linux:
        mov edi, PML4
        mov ecx, 3 * 1024
        xor eax, eax
        rep stosd
        mov dword ptr [PML4], PML4 + 0x1000 + 3
        mov dword ptr [PML4 + 0x1000], PML4 + 0x2000 + 3
        mov edi, PML4 + 0x2000
        mov eax, 0x83                   # present, writable, 2 MiB
1:      mov [edi], eax
        add edi, 8
        add eax, 0x200000
        cmp eax, 0x40000000
        jb 1b
        mov eax, cr4
        or eax, 0x20                    # PAE
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xc0000080             # EFER: long mode
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        .byte 0xea
        .long long_mode
        .word 0x10
        .code64
long_mode:
        mov eax, 0x18
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov esi, PARAMETERS
        mov eax, ENTRY
        jmp rax
