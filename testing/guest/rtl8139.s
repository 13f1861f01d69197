# The driver of the network cards, of which [net_port] is the one that is meant.

        .equ NET_TX,        0x11000
        .equ NET_RX,        0x12000     # 8192 bytes, and a whole frame that begins in there

# In: eax = a register of the configuration. Out: eax, and edx for its writing.
pci_read:
        mov edx, 0xcf8
        out dx, eax
        mov edx, 0xcfc
        in eax, dx
        ret

# In: ebx = the card. Makes it ready, with its ports in [net_port] and its address in [net_mac].
net_open:
        lea eax, [ebx + 4]
        call pci_read
        or eax, 5                       # ports, access to memory
        out dx, eax
        lea eax, [ebx + 0x10]
        call pci_read
        and al, 0xfc
        mov [net_port], eax
        mov edx, eax
        add edx, 0x37
        mov al, 0x10
        out dx, al
        mov ecx, 100000
1:      in al, dx
        test al, 0x10
        jz 2f
        loop 1b
2:      mov edx, [net_port]
        mov edi, offset net_mac
        mov ecx, 6
3:      in al, dx
        stosb
        inc edx
        loop 3b
        mov edx, [net_port]
        add edx, 0x30
        mov eax, NET_RX
        out dx, eax
        add edx, 0x37 - 0x30
        mov al, 0x0c                    # receiver and transmitter on
        out dx, al
        add edx, 0x44 - 0x37
        mov eax, 0x8a                   # what is sent to all or to us, 8 KiB, a frame goes on behind their end
        out dx, eax
        mov dword ptr [net_offset], 0
        mov dword ptr [net_descriptor], 0
        ret

# Sends the [net_length] bytes at NET_TX.
net_send:
        mov edx, [net_descriptor]
        shl edx, 2
        add edx, [net_port]
        add edx, 0x20
        mov eax, NET_TX
        out dx, eax
        sub edx, 0x10
        mov eax, [net_length]
        out dx, eax
        inc dword ptr [net_descriptor]
        and dword ptr [net_descriptor], 3
        ret

# Out: esi = the next frame, ecx = its length; or carry set when there is none.
net_next:
        mov edx, [net_port]
        add edx, 0x37
        in al, dx
        test al, 1
        jnz 9f
        mov eax, [net_offset]
        lea esi, [eax + NET_RX + 4]
        movzx ecx, word ptr [esi - 2]   # with the checksum of four bytes
        lea eax, [eax + ecx + 4 + 3]
        and eax, 0x1ffc
        mov [net_offset], eax
        sub eax, 16
        inc edx
        out dx, ax
        sub ecx, 4
        clc
        ret
9:      stc
        ret

        .balign 4
net_port:       .long 0
net_offset:     .long 0                 # of the next frame at NET_RX
net_descriptor: .long 0                 # that sends next
net_length:     .long 0
net_mac:        .space 8
