# The screen, the keyboard and the mouse, once they are asked for.
#
# The first picture is the text mode's: 80 by 25 cells, of which cell (x, y) is blank on colour (x + y) & 7. The keyboard controller
# is polled with each tick from then on.
#
# The other pictures are made of pixels in the memory of QEMU's stdvga, which the guest writes without a trip to the device model.
# Picture N of them has tiles of 32 by 32 pixels, of which tile (x, y) has colour (x + y + N) & 7. 0 and 1 have 640 by 480 pixels in
# one mode; 2 has 1024 by 768.

        .equ TEXT,     0xb8000
        .equ CRTC,     0x3d4
        .equ PS2,      0x64
        .equ PS2_DATA, 0x60
        .equ VBE,      0x1ce            # the number of a register; its value is at the next port
        .equ RESET,    0xfe

# Draws the picture, hides the cursor, and has the mouse send its movements.
screen_draw:
        mov edi, TEXT
        xor ebx, ebx                    # the row
1:      xor ecx, ecx                    # the column
2:      lea eax, [ebx + ecx]
        and eax, 7
        shl eax, 12
        mov al, ' '
        mov [edi], ax
        add edi, 2
        inc ecx
        cmp ecx, 80
        jb 2b
        inc ebx
        cmp ebx, 25
        jb 1b
        mov edx, CRTC
        mov ax, 0x200a                  # register 10: no cursor
        out dx, ax
        mov al, 0xa8                    # the mouse's clock on
        call ps2_command
        mov al, 0xd4                    # the next byte is for the mouse
        call ps2_command
        call ps2_wait
        mov al, 0xf4                    # send movements
        out PS2_DATA, al
        mov ecx, 0x10000
3:      in al, PS2                      # its answer, and whatever was there before
        test al, 1
        jz 4f
        mov ah, al
        in al, PS2_DATA
        test ah, 0x20
        jnz 5f
4:      loop 3b
5:      mov byte ptr [screen_on], 1
        mov esi, offset text_drawn
        call put_text
        jmp put_newline

ps2_command:
        push eax
        call ps2_wait
        pop eax
        out PS2, al
        ret

# Until the controller takes a byte.
ps2_wait:
        mov ecx, 0x10000
1:      in al, PS2
        test al, 2
        jz 2f
        loop 1b
2:      ret

# Says what was typed, and each whole movement of the mouse: its three bytes.
screen_input:
        cmp byte ptr [screen_on], 0
        je 9f
1:      in al, PS2
        test al, 1
        jz 9f
        mov ah, al
        xor ebx, ebx
        in al, PS2_DATA
        mov bl, al
        test ah, 0x20
        jnz 2f
        mov esi, offset text_key
        call put_text
        mov eax, ebx
        call put_hex
        call put_newline
        jmp 1b
2:      mov eax, [movement]
        shl eax, 8
        or eax, ebx
        mov [movement], eax
        inc byte ptr [moved]
        cmp byte ptr [moved], 3
        jb 1b
        mov byte ptr [moved], 0
        mov dword ptr [movement], 0
        mov ebx, eax
        mov esi, offset text_moved
        call put_text
        mov eax, ebx
        call put_hex
        call put_newline
        jmp 1b
9:      ret

# Out: edi = the VGA's memory. Carry: there is no VGA.
screen_memory:
        mov ebx, 0x80000000             # how the bus's first device is addressed
1:      lea eax, [ebx + 8]
        call pci_read
        shr eax, 16
        cmp eax, 0x300                  # a VGA
        je 2f
        add ebx, 0x800
        cmp ebx, 0x80010000
        jb 1b
        stc
        ret
2:      lea eax, [ebx + 0x10]
        call pci_read
        and al, 0xf0
        mov edi, eax
        clc
        ret

# In: eax = the width, and the height in its upper half, of the mode.
screen_mode:
        cmp eax, [picture_size]
        je 3f
        mov [picture_size], eax
        mov ecx, 4                      # off
        xor eax, eax
        call vbe_write
        mov ecx, 1
        mov eax, [picture_size]
        call vbe_write
        mov ecx, 2
        mov eax, [picture_size + 2]
        call vbe_write
        mov ecx, 3                      # bits of a pixel
        mov eax, 32
        call vbe_write
        mov ecx, 4                      # on, with all its memory at one address
        mov eax, 0x41
        call vbe_write
3:      ret

# Draws the next picture made of pixels.
screen_paint:
        call screen_memory
        jc 9f
        mov eax, [painted]
        mov eax, [picture_sizes + eax * 4]
        call screen_mode
        xor ebx, ebx                    # the row of pixels
4:      xor ebp, ebp                    # the column of tiles
5:      mov eax, ebx
        shr eax, 5
        add eax, ebp
        add eax, [painted]
        and eax, 7
        mov eax, [colours + eax * 4]
        mov ecx, 32
        rep stosd
        inc ebp
        mov eax, ebp
        shl eax, 5
        cmp ax, [picture_size]
        jb 5b
        inc ebx
        cmp bx, [picture_size + 2]
        jb 4b
        inc dword ptr [painted]
        mov esi, offset text_drawn
        call put_text
        jmp put_newline
9:      ret

# In: ecx = a register, ax = its value.
vbe_write:
        mov edx, VBE
        xchg eax, ecx
        out dx, ax
        inc edx
        xchg eax, ecx
        out dx, ax
        ret

# Has the keyboard controller reset the machine.
machine_reset:
        call ps2_wait
        mov al, RESET
        out PS2, al
1:      sti
        hlt
        jmp 1b

text_drawn:     .asciz "xen-guest: screen drawn"
text_key:       .asciz "xen-guest: key "
text_moved:     .asciz "xen-guest: mouse "

        .balign 4
movement:       .long 0
painted:        .long 0                 # pictures so far
picture_size:   .word 0, 0              # width and height of the mode
picture_sizes:  .word 640, 480, 640, 480, 1024, 768
colours:        .long 0, 0xff, 0xff00, 0xffff, 0xff0000, 0xff00ff, 0xffff00, 0xffffff
moved:          .byte 0
screen_on:      .byte 0
