# Disks. The first one, primary master, is driven by interrupts; the others are read when asked for.

        .equ DISK_TIMEOUT,  HZ * 20

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
        mov edx, IDE + IDE_CONTROL
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
        mov edx, IDE + IDE_CONTROL
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

# Prints what each disk but the first begins with.
disks_tell:
        mov ebx, offset other_disks
1:      mov esi, offset text_xen_guest
        call put_text
        lea esi, [ebx + 4]
        call put_text
        movzx ebp, word ptr [ebx]
        call other_read
        mov esi, offset text_holds
        jnc 2f
        mov esi, offset text_no_medium
2:      call put_medium
        add ebx, 8
        cmp word ptr [ebx], 0
        jne 1b
        ret

# In: carry; esi = what is said of a medium. Prints it and, if carry is clear, the text in BUFFER.
put_medium:
        pushfd
        call put_text
        popfd
        jc put_newline
        mov byte ptr [BUFFER + TEXT_MAX], 0
        mov esi, BUFFER
        call put_text
        jmp put_newline

# In: ebp = its IDE's first port, [ebx + 2] = its drive. Out: its first sector at BUFFER, or carry set.
other_read:
        lea edx, [ebp + IDE_CONTROL]
        mov al, 2                       # no interrupts
        out dx, al
        lea edx, [ebp + 6]
        mov al, [ebx + 2]
        out dx, al
        call other_wait                 # an error here is the last command's
        lea edx, [ebp + 2]
        mov al, 1
        out dx, al
        xor eax, eax
        mov ecx, 3
1:      inc edx
        out dx, al                      # sector 0
        loop 1b
        lea edx, [ebp + 7]
        mov al, 0x20                    # READ SECTORS
        out dx, al
        call other_wait
        jc 9f
        test al, 0x08
        jz 8f                           # no drive: its status is nothing at all
        mov edx, ebp
        mov edi, BUFFER
        mov ecx, 128
        rep insd
        clc
        ret
8:      stc
9:      ret

# In: ebp. Out: al = the status when the drive is no longer busy; carry set on an error.
other_wait:
        mov ecx, 1000000
        lea edx, [ebp + 7]
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

text_xen_guest: .asciz "xen-guest: "
text_holds:     .asciz " holds "
text_no_medium: .asciz " is not readable"

        .balign 4
other_disks:    .word IDE, 0xf0         # its ports, its drive with LBA, its name
                .asciz "hdb"
                .word IDE2, 0xe0
                .asciz "hdc"
                .word IDE2, 0xf0
                .asciz "hdd"
                .word 0
        .balign 4
sum:            .long 0
sector:         .long 0
disk_interrupts:.long 0
disk_done:      .byte 0
disk_status:    .byte 0
