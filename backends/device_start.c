/* Start-up code for Arm's Cortex-M: the vector table, memory made ready, then main. Interrupts that a program uses are
   functions of these names; all others end in fault_handler. The linker script says where memory is. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t stack_top, data_start, data_end, data_load, bss_start, bss_end;

int main(void);
void reset_handler(void);
void fault_handler(void);
void systick_handler(void);

__attribute__((weak)) void fault_handler(void)
{
    for (;;) { }
}

__attribute__((weak)) void systick_handler(void)
{
}

/* What compilers call for structures and arrays; a C library's own take their place. */
__attribute__((weak, used)) void *memcpy(void *to, const void *from, size_t count)
{
    volatile uint8_t *t = (volatile uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    while (count-- > 0) *t++ = *f++;
    return to;
}

__attribute__((weak, used)) void *memset(void *to, int value, size_t count)
{
    volatile uint8_t *t = (volatile uint8_t *)to;
    while (count-- > 0) *t++ = (uint8_t)value;
    return to;
}

void reset_handler(void)
{
    volatile uint32_t *to;
    const uint32_t *from = &data_load;
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the floating-point unit, Helium too */
    __asm volatile("dsb\n\tisb");
#endif
    for (to = &data_start; to < &data_end; ++to) *to = *from++;
    for (to = &bss_start; to < &bss_end; ++to) *to = 0;
    main();
    fault_handler();
}

__attribute__((section(".vectors"), used)) void (*const vectors[16])(void) = {
    (void (*)(void))(uintptr_t)&stack_top,
    reset_handler,
    fault_handler, /* NMI */
    fault_handler, /* hard fault */
    fault_handler, /* memory management */
    fault_handler, /* bus */
    fault_handler, /* usage */
    fault_handler,
    fault_handler,
    fault_handler,
    fault_handler,
    fault_handler, /* supervisor call */
    fault_handler, /* debug monitor */
    fault_handler,
    fault_handler, /* PendSV */
    systick_handler,
};
