/* The wake protocol of trio_console/_ring.py and _console.py, for spin.
 *
 * One producer thread, one consumer thread, a ring of C chunks, and for each direction of waiting a flag ("armed") and
 * a bell (a descriptor that is readable once rung). The producer sends up to N chunks and finishes at any moment; the
 * consumer may abandon the lane at any moment. Checked over all interleavings:
 *
 *   - nobody sleeps for ever (spin's invalid end states): no wake-up is lost, an ending always wakes;
 *   - a consumer that sees the end has taken everything that was sent.
 *
 * Variants, each a preprocessor symbol:
 *
 *   TSO        stores go through a buffer and become visible later, as between the cores of a machine whose
 *              interpreter has no lock. Reads and system calls behave as such a machine's: a thread reads
 *              its own buffered stores, and a system call waits until its buffer is empty.
 *   ALWAYS     the flags are never cleared, so every push wakes: what _ring does without the interpreter lock.
 *   MUTANT_*   mistakes, to show that the check can fail.
 */

#ifndef N
#define N 3
#endif
#ifndef C
#define C 1
#endif

#ifdef ALWAYS
#define DISARMED 1
#else
#define DISARMED 0
#endif

#define PUSHED 0
#define POPPED 1
#define DATA_ARMED 2
#define ROOM_ARMED 3
#define FINISHED 4
#define ABANDONED 5

#define PRODUCER 0
#define CONSUMER 1

byte mem[6];
bool data_bell, room_bell;
byte total;             /* chunks sent, as only the check knows it */

#ifdef TSO

typedef buffer { byte n; byte var[2]; byte val[2] };
buffer buf[2];

#define WRITE(p, v, x) atomic { (buf[p].n < 2) -> \
        buf[p].var[buf[p].n] = v; buf[p].val[buf[p].n] = x; buf[p].n++ }
#define READ(p, v, out) d_step { \
        if \
        :: (buf[p].n == 2 && buf[p].var[1] == v) -> out = buf[p].val[1] \
        :: else -> \
                if \
                :: (buf[p].n >= 1 && buf[p].var[0] == v) -> out = buf[p].val[0] \
                :: else -> out = mem[v] \
                fi \
        fi }
#define FENCE(p) (buf[p].n == 0)

proctype memory(byte p)
{
end:    do
        :: atomic { (buf[p].n > 0) ->
                mem[buf[p].var[0]] = buf[p].val[0];
                buf[p].var[0] = buf[p].var[1];
                buf[p].val[0] = buf[p].val[1];
                buf[p].n-- }
        od
}

#else

#define WRITE(p, v, x) mem[v] = x
#define READ(p, v, out) out = mem[v]
#define FENCE(p) true

#endif

/* A system call on a bell. */
#define RING(p, bell) atomic { FENCE(p) -> bell = true }
#define DRAIN(p, bell) atomic { FENCE(p) -> bell = false }
#define SLEEP(p, bell) atomic { (FENCE(p) && bell) -> skip }

proctype producer()
{
        byte sent, popped, armed, gone;

        do
        :: (sent < N) ->
                READ(PRODUCER, ABANDONED, gone);
                if
                :: gone -> break
                :: else
                fi;
                READ(PRODUCER, POPPED, popped);
                if
                :: (sent - popped < C) ->
                        /* publish, then look whether the consumer sleeps */
                        sent++;
                        total = sent;
                        WRITE(PRODUCER, PUSHED, sent);
                        READ(PRODUCER, DATA_ARMED, armed);
                        if
                        :: armed ->
                                WRITE(PRODUCER, DATA_ARMED, DISARMED);
                                RING(PRODUCER, data_bell)
                        :: else
                        fi
                :: else ->
                        /* full: arm, look again, sleep */
                        WRITE(PRODUCER, ROOM_ARMED, 1);
                        READ(PRODUCER, POPPED, popped);
                        READ(PRODUCER, ABANDONED, gone);
                        if
                        :: (sent - popped < C || gone) -> WRITE(PRODUCER, ROOM_ARMED, DISARMED)
                        :: else ->
                                SLEEP(PRODUCER, room_bell);
                                WRITE(PRODUCER, ROOM_ARMED, DISARMED);
                                DRAIN(PRODUCER, room_bell)
                        fi
                fi
        :: break
        od;
        /* finish: publish the flag, then wake, whether or not anybody is armed */
        WRITE(PRODUCER, FINISHED, 1);
#ifndef MUTANT_SILENT_FINISH
        RING(PRODUCER, data_bell);
        RING(PRODUCER, room_bell)
#endif
}

proctype consumer()
{
        byte taken, pushed, armed, done;

        do
        :: true ->
#ifdef MUTANT_FLAG_AFTER_RING
                READ(CONSUMER, PUSHED, pushed);
                READ(CONSUMER, FINISHED, done);
#else
                /* the flag before the ring: "finished, and then found empty" is the end */
                READ(CONSUMER, FINISHED, done);
                READ(CONSUMER, PUSHED, pushed);
#endif
                if
                :: (pushed > taken) ->
                        taken++;
                        WRITE(CONSUMER, POPPED, taken);
                        READ(CONSUMER, ROOM_ARMED, armed);
                        if
                        :: armed ->
                                WRITE(CONSUMER, ROOM_ARMED, DISARMED);
                                RING(CONSUMER, room_bell)
                        :: else
                        fi
                :: (pushed == taken && done) ->
                        assert(taken == total);
                        break
                :: (pushed == taken && !done) ->
#ifdef MUTANT_ARM_AFTER_LOOK
                        READ(CONSUMER, PUSHED, pushed);
                        READ(CONSUMER, FINISHED, done);
                        WRITE(CONSUMER, DATA_ARMED, 1);
#else
                        WRITE(CONSUMER, DATA_ARMED, 1);
                        READ(CONSUMER, PUSHED, pushed);
                        READ(CONSUMER, FINISHED, done);
#endif
                        if
                        :: (pushed > taken || done) -> WRITE(CONSUMER, DATA_ARMED, DISARMED)
                        :: else ->
#ifdef MUTANT_DRAIN_AFTER_LOOK
                                SLEEP(CONSUMER, data_bell);
                                WRITE(CONSUMER, DATA_ARMED, DISARMED);
                                READ(CONSUMER, FINISHED, done);
                                READ(CONSUMER, PUSHED, pushed);
                                if
                                :: (pushed > taken) ->
                                        taken = pushed;
                                        WRITE(CONSUMER, POPPED, taken);
                                        READ(CONSUMER, ROOM_ARMED, armed);
                                        if
                                        :: armed -> WRITE(CONSUMER, ROOM_ARMED, DISARMED); RING(CONSUMER, room_bell)
                                        :: else
                                        fi
                                :: else
                                fi;
                                WRITE(CONSUMER, DATA_ARMED, 1);
                                DRAIN(CONSUMER, data_bell);
                                SLEEP(CONSUMER, data_bell);
                                WRITE(CONSUMER, DATA_ARMED, DISARMED);
                                DRAIN(CONSUMER, data_bell)
#else
                                SLEEP(CONSUMER, data_bell);
                                /* awake: disarm and drain, and only then look */
                                WRITE(CONSUMER, DATA_ARMED, DISARMED);
                                DRAIN(CONSUMER, data_bell)
#endif
                        fi
                fi
        :: true ->
                /* abandon at any moment */
                WRITE(CONSUMER, ABANDONED, 1);
#ifndef MUTANT_SILENT_ABANDON
                RING(CONSUMER, data_bell);
                RING(CONSUMER, room_bell);
#endif
                break
        od
}

init
{
        atomic {
                /* A consumer that has never looked may be asleep already; without the lock all are always armed. */
                mem[DATA_ARMED] = 1;
                mem[ROOM_ARMED] = DISARMED;
                run producer();
                run consumer();
#ifdef TSO
                run memory(PRODUCER);
                run memory(CONSUMER)
#endif
        }
}
