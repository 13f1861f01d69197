# A device that only a second device model has: bytes and words are written to its port, and what it read is added up.

        .equ TOY, 0x5a0

# Writes a byte, a double word, and four bytes by one string instruction; prints what a read returns.
toy_tell:
        mov edx, TOY
        mov al, 0x5a
        out dx, al
        mov eax, 0x12340000
        out dx, eax
        mov esi, offset toy_bytes
        mov ecx, 4
        cld
        rep outsb
        in eax, dx
        mov ebx, eax
        mov esi, offset text_toy
        call put_text
        mov eax, ebx
        call put_hex
        jmp put_newline

toy_bytes:      .byte 1, 2, 3, 4
text_toy:       .asciz "xen-guest: toy "
