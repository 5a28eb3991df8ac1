/* One thread, no operating system. */

typedef struct {
    uint64_t tag;
    frame at;
    uint64_t *ticks; /* time of each step, NULL: nobody asks */
    uint64_t (*clock)(void);
} state;

static int runtime_open(state *s, int32_t threads)
{
    (void)s;
    (void)threads;
    return 1;
}

static void runtime_run(state *s)
{
    uint64_t before = s->ticks != NULL ? s->clock() : 0;
    for (int32_t i = 0; i < STEP_COUNT; ++i) {
        STEPS[i].run(&s->at, 0, STEPS[i].tasks);
        if (s->ticks != NULL) {
            const uint64_t after = s->clock();
            s->ticks[i] = after - before;
            before = after;
        }
    }
}

static void runtime_close(state *s)
{
    (void)s;
}

static int runtime_has_clock(const state *s)
{
    return s->clock != NULL;
}
