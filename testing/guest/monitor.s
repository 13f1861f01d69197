# What a monitor of this guest can see.

        .equ MONITOR_LEAF, 0x4d4f4e31
        .equ HVM_OP, 34
        .equ GUEST_REQUEST, 24          # HVMOP_guest_request_vm_event

# A cpuid of a leaf that there is not, a write of CR4 and a request to the monitor, which is no error without one.
monitor_meet:
        mov eax, MONITOR_LEAF
        mov ecx, 7
        cpuid
        mov [monitor_answer], eax
        mov eax, 4                      # TSD, which this guest has no use for
        mov cr4, eax
        mov eax, HVM_OP
        mov ebx, GUEST_REQUEST
        xor ecx, ecx
        vmmcall                         # the testbed's processor is AMD's
        push eax
        mov esi, offset text_monitored
        call put_text
        mov eax, [monitor_answer]
        call put_hex
        mov esi, offset text_requested
        call put_text
        pop eax
        call put_hex
        jmp put_newline

text_monitored: .asciz "xen-guest: monitored cpuid="
text_requested: .asciz " request="

        .balign 4
monitor_answer: .long 0
