# The CD-ROM, secondary master.

        .equ CD_TRIES,      8

# Prints what the medium begins with. A new medium is announced by errors, each gone when its sense was asked for.
cd_tell:
        mov esi, offset text_cd
        call put_text
        mov dword ptr [left], CD_TRIES
        mov ebp, IDE2
1:      mov esi, offset cd_read_packet
        call cd_command
        mov esi, offset text_holds
        jnc put_medium
        mov esi, offset cd_sense_packet
        call cd_command
        dec dword ptr [left]
        jnz 1b
        mov esi, offset text_no_medium
        stc
        jmp put_medium

# In: esi = a packet, ebp = IDE2. Out: its data at BUFFER, or carry set.
cd_command:
        mov edx, IDE2 + IDE_CONTROL
        mov al, 2                       # no interrupts
        out dx, al
        mov edx, IDE2 + 6
        mov al, 0xa0                    # master
        out dx, al
        call other_wait                 # an error here is the last command's
        mov edx, IDE2 + 1
        xor eax, eax
        out dx, al                      # no DMA
        mov edx, IDE2 + 4
        out dx, al
        inc edx
        mov al, 0x08                    # 2048 bytes at a time
        out dx, al
        mov edx, IDE2 + 7
        mov al, 0xa0                    # PACKET
        out dx, al
        call other_wait
        jc 2f
        mov ecx, 6
        mov edx, IDE2
        rep outsw
        mov edi, BUFFER
1:      call other_wait
        jc 2f
        test al, 0x08
        jz 2f
        xor ecx, ecx
        mov edx, IDE2 + 4
        in al, dx
        mov cl, al
        inc edx
        in al, dx
        mov ch, al
        shr ecx, 1
        mov edx, IDE2
        rep insw
        jmp 1b
2:      ret

text_cd:        .asciz "xen-guest: cd"

cd_read_packet: .byte 0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0     # READ(10): one block, the first
cd_sense_packet:.byte 0x03, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0    # REQUEST SENSE
