/* A model of the wake protocol (trio_console/_console: ring.py, backend.py and stream.py), for the checker spin.
 *
 * The model has one producer thread, one consumer thread, and one lane. The lane is a ring with a bound in chunks (C) and
 * one in bytes (B). For each of the two waits it has a flag ("armed") and a bell, which is a descriptor that is readable
 * after it was rung. The producer sends up to N chunks of different sizes, one of them larger than B. Then it sends no
 * more; or it finishes, at any moment, and may discard the queued chunks. The consumer takes a part of a chunk, one chunk,
 * or all chunks, and may abandon the lane at any moment. In all interleavings this is checked:
 *
 *   - no thread sleeps for ever (spin calls that an invalid end state): no wake-up is lost, and an ending always wakes;
 *   - if the consumer sleeps after the last chunk was sent, it has taken all chunks;
 *   - if the consumer sees the end, it has taken all chunks that were sent, unless they were discarded;
 *   - a ring holds no more than its bounds, or one chunk.
 *
 * Each line that reads or writes shared state is one step, and the steps have the order of the code: the producer counts
 * a chunk, publishes it, and reads the flag; the consumer removes a chunk, counts it, and reads the flag.
 *
 * Variants, each a preprocessor symbol:
 *
 *   POLLS      the consumer is a device that polls the bell. It drains the bell only when a read finds no chunk, then
 *              looks once more, and rings the bell again if there is a chunk. It polls when a read would block; after any
 *              other read it may poll or not, as with level-triggered polling.
 *   TSO        each thread's stores go through a buffer, and other threads see them later, as on a machine with several
 *              cores, for an interpreter without its lock. A thread reads its own buffered stores, and a system call
 *              waits until the thread's buffer is empty. (The stores of one thread become visible in their order, as
 *              stores to attributes do in such an interpreter.)
 *   FENCED     each side passes one mutex between its store and its read, as `FencedRing` in ring.py does. The model's
 *              mutex does not empty a buffer, as a real one may. It only guarantees what every mutex does: a thread that
 *              takes it sees the stores that the last holder made before the release.
 *   BARE=n, EARLY=n   with FENCED: at the n-th of the four places the mutex is left out, or passed before the store.
 *   MUTANT_*   a mistake, which the check must find.
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

/* The size of chunk number i (from 0): one byte, then two bytes, then more than the ring may hold, and again. */
#define SIZE(i) (((i) % 3 == 2) -> B + 1 : (i) % 3 + 1)
/* `_low_water` and `_low_entries`. */
#define LOW (B / 2)
#define LOW_ENTRIES (C / 2)

/* The four places where a thread stores one thing and then reads another. */
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
byte total;             /* for the check only: bytes published */
bool forgotten;         /* for the check only: the queued chunks were discarded */
bool idle;              /* for the check only: the producer sends no more, and has not finished the lane */

#ifdef TSO

typedef buffer { byte n; byte var[BUFFER]; byte val[BUFFER] };
buffer buf[2];
byte at;                /* an index that is only used inside one indivisible step */

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

/* The consumer sleeps until the bell is rung. If the producer sends no more, it must have taken all chunks. */
#define SLEEP_FOR_DATA if \
        :: SLEEP(CONSUMER, data_bell) \
        :: atomic { (idle && FENCE(CONSUMER) && !data_bell) -> assert(mem[PUBLISHED] == removed); goto gone } \
        fi

/* `LaneRing.fits`, called by the producer, so that `counted` and `sent` are its own variables. */
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
                        /* count the chunk, publish it, then read whether the consumer sleeps */
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
                        /* the ring is full: arm the wake, read the ring again, sleep */
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
        :: atomic { FENCE(PRODUCER) -> idle = true }; goto stopped      /* it sends no more, and does not finish */
        :: true
        fi;
        /* the end: set the flags, then ring both bells, whether they are armed or not */
        if
        :: true
        :: atomic { forgotten = true; WRITE(PRODUCER, DISCARDED, 1) }
        fi;
        finish();
        if
        :: true
        :: atomic { forgotten = true; WRITE(PRODUCER, DISCARDED, 1) };  /* a forced end after an orderly one */
                finish()
        fi;
stopped:
        skip
}

/* `LaneRing._wake_producer`, and the step before it that counts the bytes which were taken. */
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
                /* `take` and `readinto` do not wake while the ring is above its low water, unless it is empty */
                :: (used && (used > LOW || queued > LOW_ENTRIES || used + wanted > B || queued >= C)) -> skip
                /* `pop` wakes as soon as the wanted bytes fit */
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

/* Take a part of the first chunk, or the chunk and perhaps those after it. `published` is the number of chunks seen. */
inline take()
{
        if
        :: (SIZE(removed) - offset > 1) -> offset++; popped++           /* one byte of the first chunk */
        :: popped = popped + SIZE(removed) - offset; offset = 0;        /* the first chunk, and perhaps more */
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
                /* The flags are read before the ring: "finished" and then an empty ring is the end. */
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
                        :: SLEEP_FOR_DATA         /* the device polls after this read */
                        :: true         /* the device reads again at once */
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
                                /* the read would block: the device polls the bell, and then reads again */
                                SLEEP_FOR_DATA
#else
                                SLEEP_FOR_DATA;
                                /* awake: disarm the wake and drain the bell, and only then read the ring */
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
                /* the consumer abandons the lane, at any moment */
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
                /* Armed from the start: a device may poll before its first read. */
                mem[DATA_ARMED] = 1;
                run producer();
                run consumer();
#ifdef TSO
                run memory(PRODUCER);
                run memory(CONSUMER)
#endif
        }
}
