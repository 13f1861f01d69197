# What is asked over the networks. The card whose address ends in :N:H is 10.77.N.H; it asks who 10.77.N.1 is, and then for an
# echo: at first by ICMP, and when the question is repeated by UDP, from port 7.
#
# All is done by polling; the time that passes is bounded by the timer's ticks.

        .equ NET_TRIES,     20          # half a second each
        .equ ECHO_WORDS,    368         # of four bytes: with them a frame is as long as it may be, 1514 bytes
        .equ ECHO_FRAME,    42 + ECHO_WORDS * 4
        .equ ECHO_PROTOCOL, 8           # within what describes a kind of echo
        .equ ECHO_ANSWER,   10
        .equ ECHO_NAME,     12

nets_ask_again:
        mov ebp, offset udp
        jmp 1f
nets_ask:
        mov ebp, offset icmp
1:      mov [net_echo], ebp
        mov dword ptr [net_number], 0
        mov ebx, 0x80000000             # how the bus's first device is addressed
2:      mov eax, ebx
        call pci_read
        cmp eax, 0x813910ec
        jne 3f
        push ebx
        call net_ask
        pop ebx
        inc dword ptr [net_number]
3:      add ebx, 0x800
        cmp ebx, 0x80010000
        jb 2b
        ret

# In: ebx = the card.
net_ask:
        call net_open
        mov ax, [net_mac + 4]
        shl eax, 16
        mov ax, 0x4d0a                  # 10.77
        mov [net_own], eax
        and eax, 0x00ffffff
        or eax, 0x01000000
        mov [net_peer], eax

        mov esi, offset text_net
        call put_text
        mov eax, [net_number]
        call put_decimal
        mov esi, offset text_mac
        call put_text
        mov esi, offset net_mac
        call put_mac
        call arp_make
        mov ebp, offset arp_taken
        call net_exchange
        mov esi, offset text_no_reply
        jc 9f
        mov esi, offset text_reply
        call put_text
        mov esi, offset net_peer_mac
        call put_mac
        mov ebx, [net_echo]
        lea esi, [ebx + ECHO_NAME]
        call put_text
        call echo_make
        mov ebp, offset echo_taken
        call net_exchange
        mov esi, offset text_echo
        jnc 9f
        mov esi, offset text_no_echo
9:      call put_text
        jmp put_newline

# In: esi = an address of six bytes.
put_mac:
        mov ecx, 6
1:      lodsb
        call put_byte_hex
        mov al, ':'
        cmp ecx, 1
        je 2f
        call put_byte
2:      loop 1b
        ret

# Sends the frame at NET_TX until the function ebp takes a frame (esi, ecx) as its answer. Out: carry set if none was taken.
net_exchange:
        mov dword ptr [left], NET_TRIES
1:      call net_send
        mov edi, [ticks]
        add edi, HZ / 2
2:      call net_next
        jc 3f
        push edi
        call ebp
        pop edi
        jnc 9f
        jmp 4f
3:      hlt                             # until the next tick
4:      mov eax, [ticks]
        sub eax, edi
        js 2b
        dec dword ptr [left]
        jnz 1b
        stc
9:      ret

# ------------------------------------------------------------------------------------------------------------ frames

# Who is [net_peer]?
arp_make:
        mov edi, NET_TX
        mov eax, -1
        stosd
        stosw
        call put_own_mac
        mov eax, 0x01000608              # ARP, Ethernet
        stosd
        mov eax, 0x04060008             # IPv4, addresses of six and of four bytes
        stosd
        mov ax, 0x0100                  # a question
        stosw
        call put_own_mac
        mov eax, [net_own]
        stosd
        xor eax, eax
        stosd
        stosw
        mov eax, [net_peer]
        stosd
        xor eax, eax
        mov ecx, 18                     # up to the shortest frame there is
        rep stosb
        mov dword ptr [net_length], 60
        ret

put_own_mac:
        mov esi, offset net_mac
        movsd
        movsw
        ret

arp_taken:
        cmp ecx, 42
        jb 9f
        cmp dword ptr [esi + 12], 0x01000608
        jne 9f
        cmp word ptr [esi + 20], 0x0200 # an answer
        jne 9f
        mov eax, [net_peer]
        cmp [esi + 28], eax
        jne 9f
        call is_to_us
        jc 9f
        add esi, 22
        mov edi, offset net_peer_mac
        movsd
        movsw
        clc
        ret
9:      stc
        ret

# In: esi = a frame. Out: carry set if it is sent to another address than ours.
is_to_us:
        mov eax, [net_mac]
        cmp [esi], eax
        jne 9f
        mov ax, [net_mac + 4]
        cmp [esi + 4], ax
        jne 9f
        clc
        ret
9:      stc
        ret

# An echo is asked of [net_peer], with words that are this card's own. In: ebx = by what.
echo_make:
        mov edi, NET_TX
        mov esi, offset net_peer_mac
        movsd
        movsw
        call put_own_mac
        mov esi, offset ip_header
        mov ecx, 11
        rep movsw
        mov al, [ebx + ECHO_PROTOCOL]
        mov [NET_TX + 23], al
        mov eax, [net_own]
        mov [NET_TX + 26], eax
        mov eax, [net_peer]
        mov [NET_TX + 30], eax
        mov esi, ebx
        movsd
        movsd
        mov eax, [net_mac + 2]
        mov ecx, ECHO_WORDS
1:      imul eax, eax, 1664525
        add eax, 1013904223
        stosd
        loop 1b
        mov esi, NET_TX + 14
        mov ecx, 10
        xor edx, edx
        call checksum
        mov [NET_TX + 24], ax
        mov dword ptr [net_length], ECHO_FRAME
        cmp ebx, offset udp
        je 9f                           # may go without
        mov esi, NET_TX + 34
        mov ecx, (ECHO_FRAME - 34) / 2
        xor edx, edx
        call checksum
        mov [NET_TX + 36], ax
9:      ret

# In: esi, ecx = some 16-bit words, edx = what else is added. Out: ax = what makes their sum right; 0 if it is.
checksum:
        xor eax, eax
1:      lodsw
        add edx, eax
        loop 1b
        movzx eax, dx
        shr edx, 16
        add edx, eax
        mov eax, edx
        shr eax, 16
        add eax, edx
        not eax
        ret

# In: ebx = by what it was asked.
echo_taken:
        cmp ecx, ECHO_FRAME
        jb 9f
        cmp dword ptr [esi + 12], 0x00450008    # IPv4
        jne 9f
        mov al, [ebx + ECHO_PROTOCOL]
        cmp [esi + 23], al
        jne 9f
        mov eax, [net_peer]
        cmp [esi + 26], eax
        jne 9f
        mov eax, [net_own]
        cmp [esi + 30], eax
        jne 9f
        mov eax, [ebx + ECHO_ANSWER]
        cmp [esi + 34], ax
        jne 9f
        call is_to_us
        jc 9f
        push esi
        add esi, 42
        mov edi, NET_TX + 42
        mov ecx, ECHO_WORDS
        repe cmpsd
        pop esi
        jne 9f
        add esi, 34
        xor edx, edx
        mov ecx, (ECHO_FRAME - 34) / 2
        cmp ebx, offset udp
        jne 1f
        sub esi, 8                      # the addresses, the protocol and the length count as well
        mov ecx, (ECHO_FRAME - 26) / 2
        mov edx, (17 + (ECHO_FRAME - 34) % 256) * 256 + (ECHO_FRAME - 34) / 256
1:      call checksum
        test ax, ax
        jnz 9f
        clc
        ret
9:      stc
        ret

# IPv4, from the frame's type on.
ip_header:
        .byte 0x08, 0x00, 0x45, 0, (ECHO_FRAME - 14) / 256, (ECHO_FRAME - 14) % 256, 0, 0, 0x40, 0, 64, 0, 0, 0
        .long 0, 0

# The header, the protocol's number, what the answer's header begins with, and the name.
icmp:   .byte 8, 0, 0, 0, 0x77, 0, 0, 1, 1, 0, 0, 0
        .asciz " echo="
udp:    .byte 0x77, 7, 0, 7, (ECHO_FRAME - 34) / 256, (ECHO_FRAME - 34) % 256, 0, 0, 17, 0, 0, 7
        .asciz " datagram="

text_net:       .asciz "xen-guest: net"
text_mac:       .asciz " mac="
text_reply:     .asciz " reply=ok from="
text_no_reply:  .asciz " reply=none"
text_echo:      .asciz "ok"
text_no_echo:   .asciz "none"

        .balign 4
net_echo:       .long 0                 # icmp or udp
net_number:     .long 0
net_own:        .long 0
net_peer:       .long 0
net_peer_mac:   .space 8
