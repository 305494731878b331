/* How a consumer that has gone takes back what the producer was granted (trio_console/_console/ring.py), for spin.
 *
 * The producer stores how many bytes fit, so that it need not read the consumer's counter for each chunk (`_grant`); the
 * consumer may take that back at any moment (`revoke`). Checked over all interleavings: when both are done, no byte is
 * granted, so every later chunk is refused.
 *
 * Variants, each a preprocessor symbol:
 *
 *   TSO        stores become visible later, see wake.pml.
 *   FENCED     between store and look each side passes one mutex, see wake.pml.
 *   BARE, EARLY   with FENCED: the producer does not pass it, or passes it before its store.
 *   MUTANT_*   mistakes, to show that the check can fail.
 */

#define GRANTED 0
#define REVOKED 1
#define MUTEX 2

#define PRODUCER 0
#define CONSUMER 1

byte mem[3];
byte left;              /* threads that are done, and whose stores all see */

#ifdef TSO

#define BUFFER 4
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
#define EMPTY(p) (buf[p].n == 0)

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
#define EMPTY(p) true

#endif

#ifdef FENCED
inline pass(p)
{
        atomic { mem[MUTEX] == 0 -> mem[MUTEX] = 1 };
        WRITE(p, MUTEX, 0)
}
#else
#define pass(p) skip
#endif

/* Three chunks are offered, and each may use up what was granted. */
proctype producer()
{
        byte offered, granted, revoked;

        do
        :: (offered < 3) ->
                offered++;
                READ(PRODUCER, GRANTED, granted);
                if
                :: granted              /* it goes into the ring */
                :: true ->
#ifdef MUTANT_LOOKS_FIRST
                        READ(PRODUCER, REVOKED, revoked);
                        WRITE(PRODUCER, GRANTED, 1);
#else
#ifdef EARLY
                        pass(PRODUCER);
#endif
                        WRITE(PRODUCER, GRANTED, 1);
#if !defined(EARLY) && !defined(BARE)
                        pass(PRODUCER);
#endif
                        READ(PRODUCER, REVOKED, revoked);
#endif
                        if
                        :: revoked -> WRITE(PRODUCER, GRANTED, 0)
                        :: else
                        fi
                fi;
                granted = 0
        :: else -> break
        od;
        atomic { EMPTY(PRODUCER) -> left++ }
}

proctype consumer()
{
#ifdef MUTANT_TAKES_BACK_FIRST
        WRITE(CONSUMER, GRANTED, 0);
        WRITE(CONSUMER, REVOKED, 1);
#else
        WRITE(CONSUMER, REVOKED, 1);
        pass(CONSUMER);
        WRITE(CONSUMER, GRANTED, 0);
#endif
        atomic { EMPTY(CONSUMER) -> left++ }
}

proctype checker()
{
        (left == 2) -> assert(!mem[GRANTED])
}

init
{
        atomic {
                run producer();
                run consumer();
                run checker();
#ifdef TSO
                run memory(PRODUCER);
                run memory(CONSUMER)
#endif
        }
}
