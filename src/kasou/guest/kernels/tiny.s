# tiny: a supervisor that fits on a few pages.
#
# The firmware (an SBI) enters it in S-mode at 0x80200000 with paging off, a0 = the number of this
# hart and a1 = the address of the device tree. From then on tiny owns the hart: it installs a trap
# handler, greets, and reads commands. Everything it cannot do itself it asks of the firmware with
# `ecall`: a7 names the extension, a6 the function, a0.. the arguments.
#
# Registers that keep their meaning throughout:
#     s0  number of this hart          s1  the line being typed          s2  its length
#     s11 what the trap handler has to say to the interrupted code

_start:
        mv      s0, a0
        la      sp, stack_top
        la      t0, trap_entry          # all traps of S-mode arrive here (stvec, mode direct)
        csrw    stvec, t0
        csrw    sie, zero
        la      a0, banner
        call    print
        mv      a0, s0
        call    print_decimal
        la      a0, banner_end
        call    print

# --- the shell --------------------------------------------------------------------------------

prompt:
        la      a0, prompt_text
        call    print
        la      s1, line
        li      s2, 0

read_key:
        call    get_key
        li      t0, 13                  # Enter
        beq     a0, t0, entered
        li      t0, 10
        beq     a0, t0, entered
        li      t0, 127                 # Backspace
        beq     a0, t0, erase
        li      t0, 8
        beq     a0, t0, erase
        li      t0, 32                  # other control characters are ignored
        bltu    a0, t0, read_key
        li      t0, 63                  # the line is full
        bgeu    s2, t0, read_key
        add     t1, s1, s2
        sb      a0, 0(t1)
        addi    s2, s2, 1
        call    put_char                # echo
        j       read_key

erase:
        beqz    s2, read_key
        addi    s2, s2, -1
        la      a0, rubout
        call    print
        j       read_key

entered:
        add     t1, s1, s2
        sb      zero, 0(t1)
        la      a0, newline
        call    print
        beqz    s2, prompt
        la      s3, commands            # a table: address of the name, address of the code

search:
        ld      a1, 0(s3)
        beqz    a1, unknown
        mv      a0, s1
        call    same
        bnez    a0, found
        addi    s3, s3, 16
        j       search

found:
        ld      t0, 8(s3)
        jalr    t0
        j       prompt

unknown:
        mv      a0, s1
        call    print
        la      a0, unknown_text
        call    print
        j       prompt

# --- the commands -----------------------------------------------------------------------------

do_help:
        la      a0, help_text
        j       print

do_hart:                                # which hart this is, and whose firmware serves it
        addi    sp, sp, -16
        sd      ra, 0(sp)
        la      a0, hart_text
        call    print
        mv      a0, s0
        call    print_decimal
        la      a0, sbi_text
        call    print
        li      a7, 0x10                # base extension, function 0: specification version
        li      a6, 0
        ecall
        sd      a1, 8(sp)
        srli    a0, a1, 24
        call    print_decimal
        la      a0, dot
        call    print
        ld      a0, 8(sp)
        slli    a0, a0, 40
        srli    a0, a0, 40
        call    print_decimal
        la      a0, newline
        call    print
        ld      ra, 0(sp)
        addi    sp, sp, 16
        ret

do_time:                                # the clock
        addi    sp, sp, -16
        sd      ra, 0(sp)
        la      a0, time_text
        call    print
        csrr    a0, time
        call    print_decimal
        la      a0, newline
        call    print
        ld      ra, 0(sp)
        addi    sp, sp, 16
        ret

do_trap:                                # execute no instruction, and live
        addi    sp, sp, -16
        sd      ra, 0(sp)
        la      a0, trap_before
        call    print
        li      s11, 0
        .word   0xffffffff              # not an instruction: cause 2, to trap_entry
        la      a0, trap_cause          # the handler stepped over it and left scause in s11
        call    print
        mv      a0, s11
        call    print_decimal
        la      a0, trap_after
        call    print
        ld      ra, 0(sp)
        addi    sp, sp, 16
        ret

do_poweroff:
        la      a0, bye
        call    print
        li      a7, 0x53525354          # "SRST", function 0: type 0 (shut down), reason 0 (none)
        li      a6, 0
        li      a0, 0
        li      a1, 0
        ecall
        j       do_poweroff

# --- the trap handler -------------------------------------------------------------------------
#
# Only one trap is expected, the one that `trap` asks for. The handler keeps every register but
# s11, which carries its answer. sepc is moved past the four bytes that trapped; sret goes there.

        .balign 4
trap_entry:
        csrw    sscratch, t0
        csrr    s11, scause
        li      t0, 2                   # illegal instruction
        bne     s11, t0, trap_unexpected
        csrr    t0, sepc
        addi    t0, t0, 4
        csrw    sepc, t0
        csrr    t0, sscratch
        sret

trap_unexpected:
        la      sp, stack_top
        la      a0, panic_text
        call    print
        mv      a0, s11
        call    print_decimal
        la      a0, newline
        call    print
        j       do_poweroff

# --- the console, by way of the firmware ------------------------------------------------------

put_char:                               # a0: a character
        li      a7, 1                   # the legacy call sbi_console_putchar: any firmware has it
        ecall
        ret

print:                                  # a0: text that ends with a zero byte
        mv      t2, a0
print_next:
        lbu     a0, 0(t2)
        beqz    a0, print_done
        li      a7, 1
        ecall                           # the firmware keeps all registers but a0 and a1
        addi    t2, t2, 1
        j       print_next
print_done:
        ret

get_key:                                # a0 becomes the next character typed; sleeps until then
        li      a7, 2                   # sbi_console_getchar: -1 when there is none
        ecall
        bgez    a0, get_key_done
        csrr    a0, time                # ask for a timer interrupt in 10 ms (10 MHz clock) ...
        li      t0, 100000
        add     a0, a0, t0
        li      a7, 0x54494d45          # "TIME", function 0
        li      a6, 0
        ecall
        li      t0, 32                  # ... and wait: wfi wakes when an interrupt that sie enables
        csrw    sie, t0                 # is pending, and none is taken because sstatus.SIE is 0
        wfi
        csrw    sie, zero
        j       get_key
get_key_done:
        ret

print_decimal:                          # a0: an unsigned number
        addi    sp, sp, -48
        sd      ra, 0(sp)
        addi    t1, sp, 47              # digits are made from the last one backwards
        sb      zero, 0(t1)
        li      t0, 10
print_decimal_next:
        remu    t2, a0, t0
        divu    a0, a0, t0
        addi    t2, t2, 48              # '0'
        addi    t1, t1, -1
        sb      t2, 0(t1)
        bnez    a0, print_decimal_next
        mv      a0, t1
        call    print
        ld      ra, 0(sp)
        addi    sp, sp, 48
        ret

same:                                   # a0 becomes 1 if the texts at a0 and a1 are equal, else 0
        lbu     t0, 0(a0)
        lbu     t1, 0(a1)
        bne     t0, t1, same_no
        beqz    t0, same_yes
        addi    a0, a0, 1
        addi    a1, a1, 1
        j       same
same_yes:
        li      a0, 1
        ret
same_no:
        li      a0, 0
        ret

# --- data -------------------------------------------------------------------------------------

        .balign 8
commands:
        .dword  name_help, do_help
        .dword  name_hart, do_hart
        .dword  name_time, do_time
        .dword  name_trap, do_trap
        .dword  name_poweroff, do_poweroff
        .dword  0, 0

name_help:      .asciz "help"
name_hart:      .asciz "hart"
name_time:      .asciz "time"
name_trap:      .asciz "trap"
name_poweroff:  .asciz "poweroff"

banner:         .asciz "\r\ntiny: a supervisor in a few pages of assembly, on hart "
banner_end:     .asciz "\r\nType help.\r\n"
prompt_text:    .asciz "tiny> "
newline:        .asciz "\r\n"
rubout:         .asciz "\b \b"
dot:            .asciz "."
unknown_text:   .asciz ": no such command; type help\r\n"
help_text:      .ascii "help      this text\r\n"
                .ascii "hart      which hart this is, and which SBI serves it\r\n"
                .ascii "time      the clock, in ticks of 100 ns\r\n"
                .ascii "trap      execute an illegal instruction, and survive it\r\n"
                .asciz "poweroff  end the machine\r\n"
hart_text:      .asciz "this is hart "
sbi_text:       .asciz ", served by SBI "
time_text:      .asciz "time is "
trap_before:    .asciz "executing 0xffffffff ...\r\n"
trap_cause:     .asciz "trapped: scause "
trap_after:     .asciz " (illegal instruction); sret went past it\r\n"
bye:            .asciz "bye\r\n"
panic_text:     .asciz "\r\ntiny: unexpected trap, scause "

        .balign 16
line:
        .zero   64
stack:
        .zero   1024
stack_top:
        .word   0
