# The serial ports.

# Makes [port] ready.
serial_init:
        mov ebp, [port]
        lea edx, [ebp + 1]
        xor eax, eax
        out dx, al                      # no interrupts
        lea edx, [ebp + 3]
        mov al, 0x80
        out dx, al
        mov edx, ebp
        mov al, 1                       # 115200
        out dx, al
        inc edx
        xor eax, eax
        out dx, al
        lea edx, [ebp + 3]
        mov al, 0x03                    # 8n1
        out dx, al
        dec edx
        mov al, 0x07                    # FIFOs on and empty
        out dx, al
        lea edx, [ebp + 4]
        mov al, 0x03                    # DTR, RTS
        out dx, al
        mov byte ptr [fifo_room], 0
        ret

# Says on each of the other ports which one it is.
ports_tell:
        mov dword ptr [left], 2
        mov ebx, offset other_ports
1:      movzx eax, word ptr [ebx]
        mov [port], eax
        call serial_init
        mov esi, offset text_port
        call put_text
        mov eax, [left]
        call put_decimal
        call put_newline
        add ebx, 2
        inc dword ptr [left]
        cmp dword ptr [left], 4
        jbe 1b
        mov dword ptr [port], COM1
        mov byte ptr [fifo_room], 0
        ret

# In: al. The status is looked at once for each FIFO of bytes: every port access is a trip to the device model.
put_byte:
        push edx
        push eax
        cmp byte ptr [fifo_room], 0
        jne 2f
        mov edx, [port]
        add edx, 5
1:      in al, dx
        test al, 0x20
        jz 1b
        mov byte ptr [fifo_room], 16
2:      dec byte ptr [fifo_room]
        pop eax
        mov edx, [port]
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
        push eax
        mov al, '0'
        call put_byte
        mov al, 'x'
        call put_byte
        pop eax
        mov ecx, 8
1:      rol eax, 4
        call put_digit
        loop 1b
        ret

# In: eax. Out: two digits for its lowest byte.
put_byte_hex:
        ror eax, 4
        call put_digit
        rol eax, 4

# In: eax. Out: a digit for its lowest four bits. eax stays.
put_digit:
        push eax
        and al, 15
        cmp al, 10
        jb 1f
        add al, 'a' - '0' - 10
1:      add al, '0'
        call put_byte
        pop eax
        ret

# Does what each byte that has arrived asks for. Nothing this guest prints has one of these, so a terminal that echoes cannot start
# a conversation with it.
serial_input:
        mov edx, COM1 + 5
        in al, dx
        test al, 1
        jz 9f
        mov edx, COM1
        in al, dx
        mov ebx, offset requests
1:      cmp al, [ebx]
        je 2f
        add ebx, 5
        cmp byte ptr [ebx], 0
        jne 1b
        jmp serial_input
2:      call dword ptr [ebx + 1]
        jmp serial_input
9:      ret

answer: mov esi, offset text_answer
        call put_text
        mov eax, [seconds]
        call put_decimal
        jmp put_newline

requests:
        .byte '?'
        .long answer
        .byte '#'
        .long cd_tell
        .byte '%'
        .long disks_tell
        .byte '@'
        .long ports_tell
        .byte '&'
        .long nets_ask_again
        .byte '~'
        .long toy_tell
        .byte '^'
        .long dma_try
        .byte '|'
        .long dma_forever
        .byte '*'
        .long screen_draw
        .byte '+'
        .long screen_paint
        .byte '$'
        .long machine_reset
        .byte '!'
        .long monitor_meet
        .byte '='
        .long bench_run
        .byte 0

text_answer:    .asciz "xen-guest: answer second="
text_port:      .asciz "\r\nxen-guest: port "

        .balign 4
port:           .long COM1
other_ports:    .word 0x2f8, 0x3e8, 0x2e8
fifo_room:      .byte 0
