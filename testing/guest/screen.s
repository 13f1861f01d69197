# The screen, the keyboard and the mouse, once they are asked for.
#
# The picture is the text mode's: 80 by 25 cells, of which cell (x, y) is blank on colour (x + y) & 7. The keyboard controller is
# polled with each tick from then on.

        .equ TEXT,     0xb8000
        .equ CRTC,     0x3d4
        .equ PS2,      0x64
        .equ PS2_DATA, 0x60

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

text_drawn:     .asciz "xen-guest: screen drawn"
text_key:       .asciz "xen-guest: key "
text_moved:     .asciz "xen-guest: mouse "

        .balign 4
movement:       .long 0
moved:          .byte 0
screen_on:      .byte 0
