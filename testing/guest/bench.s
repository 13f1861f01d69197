# The screen's benchmark, once it is asked for: then the guest does nothing else until it is destroyed.
#
# It waits for the keyboard's interrupt. Dom0 reads at MEETING what was done: a word that names this, the keys that were seen, the
# pictures that were drawn. The mode has 800 by 600 pixels. What the keys draw:
#
#   A      a square in the corner, white or black in turn
#   F      the same, LATER ticks later
#   B      tiles of 32 by 32 pixels
#   C      text, in the letters that the BIOS has
#   D      colours that change from pixel to pixel
#   E      noise
#
# Each of the pictures from B on differs from the one before in nearly every pixel.

        .equ MEETING,      0x60000
        .equ NAME,         0x48434e42   # BNCH
        .equ LETTERS,      0xffa6e      # in the BIOS: 8 bytes for each letter
        .equ BENCH_SIZE,   600 << 16 | 800
        .equ IRQ1_VECTOR,  0x21
        .equ SQUARE,       16
        .equ LATER,        4 * HZ

bench_run:
        call screen_memory
        jc 9f
        mov [bench_memory], edi
        mov eax, BENCH_SIZE
        call screen_mode
        mov edi, IDT_ADDRESS + 8 * IRQ1_VECTOR
        mov eax, offset on_key
        call set_gate
        mov al, 0x60                    # the controller's byte follows: interrupts of the keyboard, its codes as ever
        call ps2_command
        call ps2_wait
        mov al, 0x45
        out PS2_DATA, al
        in al, PS2_DATA                 # whatever was there before
        mov al, 0xf8                    # open: IRQ 0, IRQ 1 and the cascade
        out PIC1 + 1, al
        mov dword ptr [MEETING + 4], 0
        mov dword ptr [MEETING + 8], 0
        mov dword ptr [MEETING], NAME
1:      cli
        in al, PS2
        test al, 1
        jnz 2f
        sti                             # takes effect after hlt has begun
        hlt
        jmp 1b
2:      sti
        in al, PS2_DATA
        test al, 0x80                   # released
        jnz 1b
        inc dword ptr [MEETING + 4]
        mov ebx, offset bench_keys
3:      cmp al, [ebx]
        je 4f
        add ebx, 5
        cmp byte ptr [ebx], 0
        jne 3b
        jmp 1b
4:      call dword ptr [ebx + 1]
        inc dword ptr [MEETING + 8]
        jmp 1b
9:      ret

on_key: push eax
        mov al, 0x20
        out PIC1, al
        pop eax
        iretd

bench_later:
        mov eax, [ticks]
        lea ebx, [eax + LATER]
1:      hlt
        mov eax, [ticks]
        sub eax, ebx
        js 1b
bench_square:
        mov edi, [bench_memory]
        xor dword ptr [bench_colour], 0xffffff
        mov eax, [bench_colour]
        mov ebx, SQUARE
1:      mov ecx, SQUARE
        rep stosd
        add edi, (800 - SQUARE) * 4
        dec ebx
        jnz 1b
        ret

bench_tiles:
        mov esi, offset tile_pixel
        jmp bench_picture
bench_text:
        mov esi, offset text_pixel
        jmp bench_picture
bench_colours:
        mov esi, offset colour_pixel
        jmp bench_picture
bench_noise:
        mov esi, offset noise_pixel

# In: esi = what gives the pixel in row ebx and column ebp in eax, and changes no more than ecx and edx beside it.
bench_picture:
        inc dword ptr [bench_number]
        mov edi, [bench_memory]
        xor ebx, ebx
1:      xor ebp, ebp
2:      call esi
        stosd
        inc ebp
        cmp ebp, 800
        jb 2b
        inc ebx
        cmp ebx, 600
        jb 1b
        ret

tile_pixel:
        mov eax, ebx
        shr eax, 5
        mov ecx, ebp
        shr ecx, 5
        add eax, ecx
        add eax, [bench_number]
        and eax, 7
        mov eax, [colours + eax * 4]
        ret

text_pixel:                             # letters of 8 by 16 pixels: each row of the BIOS's twice
        mov eax, ebx
        shr eax, 4
        imul eax, eax, 13
        mov ecx, ebp
        shr ecx, 3
        imul ecx, ecx, 7
        add eax, ecx
        add eax, [bench_number]
        xor edx, edx
        mov ecx, 95
        div ecx
        lea ecx, [edx * 8 + ' ' * 8]    # no letter in particular
        mov eax, ebx
        shr eax, 1
        and eax, 7
        movzx eax, byte ptr [LETTERS + ecx + eax]
        mov ecx, ebp
        and ecx, 7
        shl eax, cl
        test al, 0x80
        mov eax, 0xaaaaaa
        jnz 1f
        mov eax, [bench_number]
        and eax, 1
        imul eax, eax, 0xaa
1:      ret

colour_pixel:
        mov eax, ebp
        mov ecx, [bench_number]
        shl ecx, 5
        add eax, ecx                    # red to the right
        shl eax, 8
        mov al, bl                      # green down
        lea edx, [ebx + ebp]
        add edx, ecx                    # blue along
        shl eax, 8
        mov al, dl
        and eax, 0xffffff
        ret

noise_pixel:
        mov eax, [bench_seed]
        imul eax, eax, 1664525
        add eax, 1013904223
        mov [bench_seed], eax
        shr eax, 8
        ret

bench_keys:
        .byte 0x1e
        .long bench_square
        .byte 0x21
        .long bench_later
        .byte 0x30
        .long bench_tiles
        .byte 0x2e
        .long bench_text
        .byte 0x20
        .long bench_colours
        .byte 0x12
        .long bench_noise
        .byte 0

        .balign 4
bench_memory:   .long 0
bench_colour:   .long 0
bench_number:   .long 0
bench_seed:     .long 1
