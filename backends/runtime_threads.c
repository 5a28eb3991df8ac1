/* Threads. The caller is number 0; the others wait between runs. Every thread walks the same list of steps, takes its
   share of each step's tasks, and waits for the others before a step that may read what they wrote. */

#define SPINS 2000 /* looks at a word before a thread sleeps: some 20 to 100 microseconds */

typedef struct {
    uint64_t tag;
    frame at;
    uint64_t *ticks; /* time of each step, NULL: nobody asks */
    uint64_t (*clock)(void);
    int32_t threads;
    int32_t stop;
    uint32_t started;  /* workers that have taken their number */
    uint32_t sleepers; /* threads that wait for `wake` */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint8_t apart_1[64]; /* the words that threads watch lie in cache lines of their own */
    uint32_t runs;       /* changes when a run begins */
    uint8_t apart_2[60];
    uint32_t arrived; /* threads at the barrier */
    uint8_t apart_3[60];
    uint32_t passed; /* changes when all have arrived */
    uint8_t apart_4[60];
    pthread_t workers[MAX_THREADS - 1];
} state;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static void wait_for_change(state *s, uint32_t *word, uint32_t old)
{
    for (int32_t i = 0; i < SPINS; ++i) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != old) return;
        relax();
    }
    pthread_mutex_lock(&s->lock);
    __atomic_add_fetch(&s->sleepers, 1, __ATOMIC_SEQ_CST); /* before the look at the word: `change` looks after it */
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == old) pthread_cond_wait(&s->wake, &s->lock);
    __atomic_sub_fetch(&s->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&s->lock);
}

static void change(state *s, uint32_t *word)
{
    __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&s->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&s->lock);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static void barrier(state *s)
{
    const uint32_t passed = __atomic_load_n(&s->passed, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&s->arrived, 1, __ATOMIC_ACQ_REL) == (uint32_t)s->threads) {
        __atomic_store_n(&s->arrived, 0, __ATOMIC_RELAXED);
        change(s, &s->passed);
    } else {
        wait_for_change(s, &s->passed, passed);
    }
}

static uint64_t now(const state *s)
{
    struct timespec time;
    if (s->clock != NULL) return s->clock();
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

static int32_t share(int32_t tasks, int32_t number, int32_t threads)
{
    return (int32_t)((int64_t)tasks * number / threads);
}

static void walk(state *s, int32_t number)
{
    uint64_t *const ticks = number == 0 ? s->ticks : NULL;
    uint64_t before = ticks != NULL ? now(s) : 0;
    for (int32_t i = 0; i < STEP_COUNT; ++i) {
        const int32_t tasks = STEPS[i].tasks;
        if (s->threads == 1) {
            STEPS[i].run(&s->at, 0, tasks);
        } else {
            const int32_t begin = tasks > 1 ? share(tasks, number, s->threads) : 0;
            const int32_t end = tasks > 1 ? share(tasks, number + 1, s->threads) : (number == 0 ? tasks : 0);
            if (begin < end) STEPS[i].run(&s->at, begin, end);
            /* Steps of one task in a row all run on thread 0. */
            if (tasks > 1 || (i + 1 < STEP_COUNT && STEPS[i + 1].tasks > 1)) barrier(s);
        }
        if (ticks != NULL) {
            const uint64_t after = now(s);
            ticks[i] = after - before;
            before = after;
        }
    }
}

static void *work(void *argument)
{
    state *s = (state *)argument;
    const int32_t number = (int32_t)__atomic_add_fetch(&s->started, 1, __ATOMIC_RELAXED);
    for (uint32_t runs = 0;; ++runs) {
        wait_for_change(s, &s->runs, runs);
        if (s->stop) return NULL;
        walk(s, number);
    }
}

static void stop_workers(state *s, int32_t count)
{
    s->stop = 1;
    change(s, &s->runs);
    for (int32_t i = 0; i < count; ++i) pthread_join(s->workers[i], NULL);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
}

/* Start the workers, with all signals blocked: signals belong to the program. Returns 0 when one does not start. */
static int runtime_open(state *s, int32_t threads)
{
    sigset_t all, before;
    int32_t count = 0;
    if (threads > PARALLEL_TASKS) threads = PARALLEL_TASKS;
    s->threads = threads < 1 ? 1 : threads;
    if (s->threads == 1) return 1;
    if (pthread_mutex_init(&s->lock, NULL) != 0) return 0;
    if (pthread_cond_init(&s->wake, NULL) != 0) {
        pthread_mutex_destroy(&s->lock);
        return 0;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (count < s->threads - 1 && pthread_create(&s->workers[count], NULL, work, s) == 0) ++count;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (count == s->threads - 1) return 1;
    stop_workers(s, count);
    return 0;
}

static void runtime_run(state *s)
{
    if (s->threads > 1) change(s, &s->runs);
    walk(s, 0);
}

static void runtime_close(state *s)
{
    if (s->threads > 1) stop_workers(s, s->threads - 1);
}

static int runtime_has_clock(const state *s)
{
    (void)s;
    return 1;
}
