# Devices that the guest was given: QEMU's edu, which copies between its own memory and the guest's by DMA.
#
# Each copies a word from the guest's memory and back to another place there, and then one from an address that the guest has no
# memory at, which the IOMMU has to refuse. Or it copies within the guest's memory forever.

        .equ EDU,           0x11e81234  # its device and its vendor
        .equ EDU_MEMORY,    0x40000     # its own, as DMA addresses it
        .equ EDU_HOLE,      0xf8000000  # where the BIOS puts nothing
        .equ DMA_WORD,      0x18000
        .equ DMA_BACK,      0x18004
        .equ DMA_OUTSIDE,   0x0c000000  # 192 MiB; within the 28 bits that the device addresses

# A line for each of these devices.
dma_try:
        call dma_find
        jc dma_none
1:      call dma_tell
        add ebx, 0x100
        call dma_next
        jnc 1b
        ret

dma_tell:
        mov dword ptr [DMA_WORD], 0x5a5aa5a5
        mov dword ptr [DMA_BACK], 0
        mov eax, DMA_WORD
        call dma_in
        mov eax, DMA_BACK
        call dma_out
        mov esi, offset text_dma
        call put_text
        mov eax, [DMA_BACK]
        call put_hex
        mov eax, DMA_OUTSIDE
        call dma_in
        mov eax, DMA_BACK
        call dma_out
        mov esi, offset text_outside
        call put_text
        mov eax, [DMA_BACK]
        call put_hex
        jmp put_newline

# Copies a number that grows to DMA_BACK, forever. It touches no port, so it goes on when there is no device model.
dma_forever:
        call dma_find
        jc dma_none
        mov esi, offset text_forever
        call put_text
        mov dword ptr [DMA_WORD], 0
1:      inc dword ptr [DMA_WORD]
        mov eax, DMA_WORD
        call dma_in
        mov eax, DMA_BACK
        call dma_out
        jmp 1b

dma_none:
        mov esi, offset text_no_edu
        jmp put_text

# Out: edi = the first of these devices, ready for use, ebx = how the bus has its address; or the carry flag if there is none.
dma_find:
        mov ebx, 0x80000000             # how the bus's first device is addressed
# The same, from ebx on.
dma_next:
        mov eax, ebx
        call pci_read
        cmp eax, EDU
        je 2f
        add ebx, 0x100
        cmp ebx, 0x80010000
        jb dma_next
        stc
        ret
2:      lea eax, [ebx + 0x10]
        call pci_read
        and eax, 0xfffffff0
        jnz 3f
        # It came after the BIOS was done: a megabyte for each slot.
        mov eax, ebx
        shl eax, 20 - 11
        and eax, 0x01f00000
        or eax, EDU_HOLE
        out dx, eax
3:      mov edi, eax
        lea eax, [ebx + 4]
        call pci_read
        or eax, 6                       # memory, access to memory
        out dx, eax
        clc
        ret

# In: edi = the device, eax = where in the guest's memory. Copies four bytes from there.
dma_in: mov ecx, EDU_MEMORY
        mov edx, 1
        jmp 1f
# The same, to there.
dma_out:
        mov ecx, eax
        mov eax, EDU_MEMORY
        mov edx, 3
1:      mov [edi + 0x80], eax           # from
        mov dword ptr [edi + 0x84], 0
        mov [edi + 0x88], ecx           # to
        mov dword ptr [edi + 0x8c], 0
        mov dword ptr [edi + 0x90], 4   # bytes
        mov dword ptr [edi + 0x94], 0
        mov [edi + 0x98], edx
        mov dword ptr [edi + 0x9c], 0
        mov ecx, HZ
2:      test dword ptr [edi + 0x98], 1  # it takes a tenth of a second
        jz 3f
        hlt                             # until the next tick
        loop 2b
3:      ret

text_no_edu:    .asciz "xen-guest: dma without a device\r\n"
text_forever:   .asciz "xen-guest: dma forever\r\n"
text_dma:       .asciz "xen-guest: dma inside="
text_outside:   .asciz " outside="
