# A device that the guest was given: QEMU's edu, which copies between its own memory and the guest's by DMA.
#
# It copies a word from the guest's memory and back to another place there, and then one from an address that the guest has no
# memory at, which the IOMMU has to refuse.

        .equ EDU,           0x11e81234  # its device and its vendor
        .equ EDU_MEMORY,    0x40000     # its own, as DMA addresses it
        .equ DMA_WORD,      0x18000
        .equ DMA_BACK,      0x18004
        .equ DMA_OUTSIDE,   0x0c000000  # 192 MiB; within the 28 bits that the device addresses

dma_try:
        mov ebx, 0x80000000             # how the bus's first device is addressed
1:      mov eax, ebx
        call pci_read
        cmp eax, EDU
        je 2f
        add ebx, 0x800
        cmp ebx, 0x80010000
        jb 1b
        mov esi, offset text_no_edu
        jmp put_text
2:      lea eax, [ebx + 4]
        call pci_read
        or eax, 6                       # memory, access to memory
        out dx, eax
        lea eax, [ebx + 0x10]
        call pci_read
        and al, 0xf0
        mov edi, eax
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
text_dma:       .asciz "xen-guest: dma inside="
text_outside:   .asciz " outside="
