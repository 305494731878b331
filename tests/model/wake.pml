/* The wake protocol of trio_console/_console: ring.py, backend.py and stream.py, for spin.
 *
 * There are one producer thread, one consumer thread, and one lane: a ring bounded in chunks (C) and bytes (B), and for
 * each of the two waits a flag ("armed") and a bell (a descriptor that is readable once rung). The producer sends up to N
 * chunks of different sizes, one of them larger than B, and then just sends no more; or it finishes at any moment, and
 * may discard the queued chunks. The consumer takes parts of chunks, chunks, or all chunks, and may abandon the lane at
 * any moment. Checked over all interleavings:
 *
 *   - no thread sleeps for ever (spin's invalid end states): no wake-up is lost, and an ending always wakes;
 *   - a consumer that sleeps when no more chunks are sent has taken all of them;
 *   - a consumer that sees the end has taken all chunks that were sent, unless they were discarded;
 *   - a ring holds no more than its bounds, or one chunk.
 *
 * Every line that reads or writes shared state is a step of its own, in the order of the code: a chunk is counted, then
 * published, then the flag is read; a chunk is removed, then counted, then the flag is read.
 *
 * Variants, each a preprocessor symbol:
 *
 *   POLLS      the consumer is a device that polls the bell: it drains only when a read finds no chunk, and rings again
 *              if it then finds one. It polls when a read would block, and, as level-triggered polling allows, after
 *              any other read.
 *   TSO        stores go through a buffer and become visible later, as between the cores of a machine whose
 *              interpreter has no lock. Reads and system calls behave as such a machine's: a thread reads
 *              its own buffered stores, and a system call waits until its buffer is empty. (A thread's stores
 *              keep their order, as those of attributes do in such an interpreter.)
 *   FENCED     between its store and its read, each side passes one mutex, as `FencedRing` in ring.py does. The mutex does
 *              not empty a buffer, which a real one may do. It has only the property of a mutex: when a thread takes it,
 *              the stores that the last holder made before its release are visible.
 *   BARE=n, EARLY=n   with FENCED: at the n-th of the four places the mutex is not passed, or passed before the store.
 *   MUTANT_*   mistakes, to show that the check can fail.
 */

#ifndef N
#define N 3
#endif
#ifndef C
#define C 1
#endif
#ifndef B
#define B 3
#endif
#ifndef BUFFER
#define BUFFER 2
#endif

/* Chunk number i (from 0): one byte, two, more than fit, and so on. */
#define SIZE(i) (((i) % 3 == 2) -> B + 1 : (i) % 3 + 1)
/* `_low_water` and `_low_entries`. */
#define LOW (B / 2)
#define LOW_ENTRIES (C / 2)

/* The places where something is stored and something else looked at. */
#define PUSHING 1
#define ARMING_DATA 2
#define TAKING 3
#define ARMING_ROOM 4

#ifndef BARE
#define BARE 0
#endif
#ifndef EARLY
#define EARLY 0
#endif

#define COUNTED 0       /* bytes, by the producer: `_pushed` */
#define PUBLISHED 1     /* chunks appended to the deque */
#define REMOVED 2       /* chunks popped from it */
#define POPPED 3        /* bytes, by the consumer: `_popped` */
#define DATA_ARMED 4
#define ROOM_ARMED 5
#define WANTED 6        /* `_room_wanted` */
#define FINISHED 7
#define DISCARDED 8
#define ABANDONED 9
#define MUTEX 10

#define PRODUCER 0
#define CONSUMER 1

byte mem[11];
bool data_bell, room_bell;
byte total;             /* bytes published, as only the check knows it */
bool forgotten;         /* discarded, likewise */
bool idle;              /* the producer sends no more, and does not say so, likewise */

#ifdef TSO

typedef buffer { byte n; byte var[BUFFER]; byte val[BUFFER] };
buffer buf[2];
byte at;                /* scratch, used in indivisible steps only */

#define WRITE(p, v, x) atomic { (buf[p].n < BUFFER) -> \
        buf[p].var[buf[p].n] = v; buf[p].val[buf[p].n] = x; buf[p].n++ }
#define READ(p, v, out) d_step { \
        out = mem[v]; at = 0; \
        do \
        :: (at < buf[p].n) -> \
                if \
                :: (buf[p].var[at] == v) -> out = buf[p].val[at] \
                :: else \
                fi; \
                at++ \
        :: else -> break \
        od; \
        at = 0 }
#define FENCE(p) (buf[p].n == 0)

proctype memory(byte p)
{
end:    do
        :: d_step { (buf[p].n > 0) ->
                mem[buf[p].var[0]] = buf[p].val[0];
                at = 1;
                do
                :: (at < buf[p].n) ->
                        buf[p].var[at - 1] = buf[p].var[at];
                        buf[p].val[at - 1] = buf[p].val[at];
                        at++
                :: else -> break
                od;
                at = 0;
                buf[p].n--;
                buf[p].var[buf[p].n] = 0;
                buf[p].val[buf[p].n] = 0 }
        od
}

#else

#define WRITE(p, v, x) mem[v] = x
#define READ(p, v, out) out = mem[v]
#define FENCE(p) true

#endif

#ifdef FENCED
inline pass(p)
{
        atomic { mem[MUTEX] == 0 -> mem[MUTEX] = 1 };
        WRITE(p, MUTEX, 0)
}
#define BEFORE_STORE(p, place) if :: (place == EARLY) -> pass(p) :: else fi
#define BEFORE_LOOK(p, place) if :: (place != EARLY && place != BARE) -> pass(p) :: else fi
#else
#define BEFORE_STORE(p, place) skip
#define BEFORE_LOOK(p, place) skip
#endif

/* System calls on a bell. */
#define RING(p, bell) atomic { FENCE(p) -> bell = true }
#define SILENCE(p, bell) atomic { FENCE(p) -> bell = false }
#define SLEEP(p, bell) atomic { (FENCE(p) && bell) -> skip }

/* The consumer sleeps until the bell is rung; if nobody will, it must have taken everything. */
#define SLEEP_FOR_DATA if \
        :: SLEEP(CONSUMER, data_bell) \
        :: atomic { (idle && FENCE(CONSUMER) && !data_bell) -> assert(mem[PUBLISHED] == removed); goto gone } \
        fi

/* `LaneRing.fits` as the producer calls it: `counted` and `sent` are its own. */
inline fits(yes)
{
        READ(PRODUCER, POPPED, popped);
        READ(PRODUCER, REMOVED, removed);
        yes = (counted == popped || (counted - popped + SIZE(sent) <= B && sent - removed < C));
        popped = 0;
        removed = 0
}

inline finish()
{
        WRITE(PRODUCER, FINISHED, 1);
#ifndef MUTANT_SILENT_FINISH
        RING(PRODUCER, data_bell);
        RING(PRODUCER, room_bell)
#endif
}

proctype producer()
{
        byte sent, counted, popped, removed;
        bool yes, armed, gone;

        do
        :: (sent < N) ->
                READ(PRODUCER, ABANDONED, gone);
                if
                :: gone -> break
                :: else
                fi;
                fits(yes);
                if
                :: yes ->
                        /* count, publish, then look whether the consumer sleeps */
                        counted = counted + SIZE(sent);
                        WRITE(PRODUCER, COUNTED, counted);
                        BEFORE_STORE(PRODUCER, PUSHING);
                        atomic { sent++; total = counted; WRITE(PRODUCER, PUBLISHED, sent) };
                        BEFORE_LOOK(PRODUCER, PUSHING);
                        READ(PRODUCER, DATA_ARMED, armed);
                        if
                        :: armed ->
#ifdef MUTANT_DISARM_AFTER_WAKE
                                RING(PRODUCER, data_bell);
                                WRITE(PRODUCER, DATA_ARMED, 0)
#else
                                WRITE(PRODUCER, DATA_ARMED, 0);
                                RING(PRODUCER, data_bell)
#endif
                        :: else
                        fi
                :: else ->
                        /* full: arm, look again, sleep */
                        WRITE(PRODUCER, WANTED, SIZE(sent));
                        BEFORE_STORE(PRODUCER, ARMING_ROOM);
                        WRITE(PRODUCER, ROOM_ARMED, 1);
                        BEFORE_LOOK(PRODUCER, ARMING_ROOM);
                        fits(yes);
                        READ(PRODUCER, ABANDONED, gone);
                        if
                        :: (yes || gone) -> WRITE(PRODUCER, ROOM_ARMED, 0)
                        :: else ->
                                SLEEP(PRODUCER, room_bell);
                                WRITE(PRODUCER, ROOM_ARMED, 0);
                                SILENCE(PRODUCER, room_bell)
                        fi
                fi
        :: break
        od;
        if
        :: atomic { FENCE(PRODUCER) -> idle = true }; goto stopped      /* it just sends no more */
        :: true
        fi;
        /* the end: publish the flags, then wake, whether or not anybody is armed */
        if
        :: true
        :: atomic { forgotten = true; WRITE(PRODUCER, DISCARDED, 1) }
        fi;
        finish();
        if
        :: true
        :: atomic { forgotten = true; WRITE(PRODUCER, DISCARDED, 1) };  /* on second thoughts */
                finish()
        fi;
stopped:
        skip
}

/* `LaneRing._wake_producer` and the look before it: what was taken is removed and counted. */
inline wake_producer()
{
#ifdef MUTANT_FLAG_BEFORE_COUNT
        READ(CONSUMER, ROOM_ARMED, armed);
        WRITE(CONSUMER, POPPED, popped);
#else
        BEFORE_STORE(CONSUMER, TAKING);
        WRITE(CONSUMER, POPPED, popped);
        BEFORE_LOOK(CONSUMER, TAKING);
        READ(CONSUMER, ROOM_ARMED, armed);
#endif
        if
        :: armed ->
                READ(CONSUMER, COUNTED, used);
                used = used - popped;
                READ(CONSUMER, PUBLISHED, queued);
                queued = queued - removed;
                READ(CONSUMER, WANTED, wanted);
                if
#ifdef MUTANT_NO_EMPTY_RULE
                :: (used > LOW || queued > LOW_ENTRIES || used + wanted > B || queued >= C) -> skip
#else
                /* `take` and `readinto`: not before the ring is at its low water, unless it is empty */
                :: (used && (used > LOW || queued > LOW_ENTRIES || used + wanted > B || queued >= C)) -> skip
                /* `pop`: whenever it fits */
                :: (used && (used + wanted > B || queued >= C)) -> skip
                :: (!used || (used + wanted <= B && queued < C)) ->
#endif
#ifdef MUTANT_NO_EMPTY_RULE
                :: else ->
#endif
                        WRITE(CONSUMER, ROOM_ARMED, 0);
                        RING(CONSUMER, room_bell)
                fi;
                used = 0; queued = 0; wanted = 0
        :: else
        fi
}

/* What there was to take, it has taken: `published` is how many chunks it saw. */
inline take()
{
        if
        :: (SIZE(removed) - offset > 1) -> offset++; popped++           /* part of the first */
        :: popped = popped + SIZE(removed) - offset; offset = 0;        /* it, and perhaps all others */
                removed++;
                WRITE(CONSUMER, REMOVED, removed);
                do
                :: (removed < published) -> popped = popped + SIZE(removed);
                        removed++;
                        WRITE(CONSUMER, REMOVED, removed)
                :: break
                od
        fi;
        wake_producer()
}

proctype consumer()
{
        byte removed, popped, offset, published, used, queued, wanted;
        bool armed, done, dropped;

        do
        :: true ->
#ifdef MUTANT_FLAG_AFTER_RING
                READ(CONSUMER, PUBLISHED, published);
                READ(CONSUMER, FINISHED, done);
                READ(CONSUMER, DISCARDED, dropped);
#else
                /* the flags before the ring: "finished, and then found empty" is the end */
                READ(CONSUMER, FINISHED, done);
                READ(CONSUMER, DISCARDED, dropped);
                READ(CONSUMER, PUBLISHED, published);
#endif
                assert(published - removed <= C);
                if
#ifdef POLLS
                :: dropped -> break
#else
                :: (dropped && done) -> break
#endif
                :: (!dropped && published > removed) ->
#ifdef MUTANT_DRAIN_WITH_RESULT
                        SILENCE(CONSUMER, data_bell);
#endif
                        take();
#ifdef POLLS
                        if
                        :: SLEEP_FOR_DATA         /* a device that polls after each read */
                        :: true         /* one that reads on */
                        fi
#endif
                :: (!dropped && published == removed && done) ->
                        assert(popped == total || forgotten);
                        break
                :: (!done && (dropped || published == removed)) ->
#ifdef POLLS
                        SILENCE(CONSUMER, data_bell);
#endif
#ifdef MUTANT_ARM_AFTER_LOOK
                        READ(CONSUMER, PUBLISHED, published);
                        READ(CONSUMER, FINISHED, done);
                        WRITE(CONSUMER, DATA_ARMED, 1);
#else
                        BEFORE_STORE(CONSUMER, ARMING_DATA);
                        WRITE(CONSUMER, DATA_ARMED, 1);
                        BEFORE_LOOK(CONSUMER, ARMING_DATA);
                        READ(CONSUMER, PUBLISHED, published);
                        READ(CONSUMER, FINISHED, done);
#endif
                        if
                        :: (published > removed || done) -> WRITE(CONSUMER, DATA_ARMED, 0);
#if defined(POLLS) && !defined(MUTANT_NO_RING_FOR_FOUND)
                                RING(CONSUMER, data_bell)
#endif
                        :: else ->
#ifdef POLLS
                                /* would block: the device polls the bell, and then comes back */
                                SLEEP_FOR_DATA
#else
                                SLEEP_FOR_DATA;
                                /* awake: disarm and drain, and only then look */
                                WRITE(CONSUMER, DATA_ARMED, 0);
#ifdef MUTANT_DRAIN_AFTER_LOOK
                                READ(CONSUMER, PUBLISHED, published);
                                if
                                :: (published > removed) -> take()
                                :: else
                                fi;
                                WRITE(CONSUMER, DATA_ARMED, 1);
                                SILENCE(CONSUMER, data_bell);
                                SLEEP(CONSUMER, data_bell);
                                WRITE(CONSUMER, DATA_ARMED, 0);
#endif
                                SILENCE(CONSUMER, data_bell)
#endif
                        fi
                fi;
                published = 0; done = false; dropped = false; armed = false
        :: true ->
                /* abandon at any moment */
                WRITE(CONSUMER, ABANDONED, 1);
#ifndef MUTANT_SILENT_ABANDON
                RING(CONSUMER, data_bell);
                RING(CONSUMER, room_bell);
#endif
                break
        od;
gone:
        skip
}

init
{
        atomic {
                /* A consumer that has never looked may be asleep already. */
                mem[DATA_ARMED] = 1;
                run producer();
                run consumer();
#ifdef TSO
                run memory(PRODUCER);
                run memory(CONSUMER)
#endif
        }
}
