# A guest that proves its device model works: disk, interrupts and serial port, then seconds for ever.
#
# Sector 0 is the boot sector. It has the BIOS load the sectors after it and enters 32-bit protected mode. From there
# nothing is left of the BIOS: the code drives the hardware itself.
#
#   PIT, IRQ 0          HZ ticks a second, which the seconds are counted from
#   IDE, IRQ 14         every disk transfer is programmed I/O whose completion arrives as an interrupt
#   other IDE drives    by polling, when asked for: disks as primary slave and secondary, a CD-ROM as secondary master
#   RTL8139, each       asks over its network, by polling
#   UART at 0x3f8       all output, by polling; those at 0x2f8, 0x3e8 and 0x2e8 when asked for
#
# What it prints, each line after "xen-guest: ":
#
#   start boot=N                        N is kept in the scratch sector, so writes reached the disk of earlier boots
#   disk ok sum=0xXXXXXXXX sectors=N    every pattern sector held exactly what its number says
#   netN mac=.. reply=ok from=.. echo=ok      for each network card, if there is any; `none` for what nobody answered
#   alive second=N disk=ok irq=N        once a second; the scratch sector was written and read back in between
#   answer second=N                     for each '?' that arrives on the serial port
#   cd holds TEXT, cd is not readable   for each '#' that arrives: the text that the CD-ROM begins with
#   hdb holds TEXT, hdb is not ...      for each '%': the text that each of the disks hdb, hdc and hdd begins with
#   port N                              for each '@': on the serial ports 2 to 4, each its own number
#   toy 0xXXXXXXXX                      for each '~': what the port of toy.s returned, all ones if nothing is there
#   netN ... datagram=ok                for each '&': the network cards' lines once more, with another kind of echo
#   dma inside=0xN outside=0xN          for '^', a line for each device: see dma.s
#   dma forever                         for '|', and nothing after it
#   screen drawn                        for '*', and for each '+' after it: see screen.s
#   key 0xXXXXXXXX, mouse 0xXXXXXXXX    from then on for each byte of the keyboard and each movement
#   monitored cpuid=0xN request=0xN     for each '!': the answers to a cpuid and to a request to its monitor
#   nothing more                        after '=': see bench.s
#
# For '$' it resets the machine.
#
# It waits with interrupts enabled (sti; hlt): Xen shuts a guest down that halts with interrupts off.
#
# This file has the boot sector and the course of things; disk.s, cd.s, rtl8139.s, net.s, toy.s,
# dma.s, screen.s, bench.s, monitor.s, interrupts.s and serial.s are appended to it.
# The caller defines STAGE_SECTORS, HZ, PIT_DIVISOR, PATTERN_FIRST, PATTERN_STRIDE, PATTERN_COUNT and SCRATCH_SECTOR.

        .intel_syntax noprefix

        .equ STAGE_ADDRESS, 0x7e00      # right behind the boot sector
        .equ IDT_ADDRESS,   0x5000
        .equ STACK_TOP,     0x7000
        .equ BUFFER,        0x10000     # one sector
        .equ COM1,          0x3f8
        .equ IDE,           0x1f0
        .equ IDE2,          0x170
        .equ IDE_CONTROL,   0x206       # the control port of either, from its first
        .equ TEXT_MAX,      40          # at most so many bytes of a medium's text are printed
        .equ PIC1,          0x20
        .equ PIC2,          0xa0
        .equ IRQ0_VECTOR,   0x20
        .equ IRQ14_VECTOR,  0x2e
        .equ IRQ15_VECTOR,  0x2f

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

        call nets_ask

        mov eax, [ticks]
        add eax, HZ
        mov [next_second], eax
forever:
        call serial_input
        call screen_input
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

text_start:     .asciz "\r\nxen-guest: start boot="
text_disk_ok:   .asciz "xen-guest: disk ok sum="
text_sectors:   .asciz " sectors="
text_disk_bad:  .asciz "xen-guest: disk BAD sector="
text_status:    .asciz " status="
text_alive:     .asciz "xen-guest: alive second="
text_good:      .asciz " disk=ok irq="
text_bad:       .asciz " disk=BAD irq="

        .balign 4
next_second:    .long 0
seconds:        .long 0
boots:          .long 0
left:           .long 0                 # of what a loop counts
