/* The console device of a virtual machine monitor, as foreign threads see it: two pthreads that know nothing of
 * Python, call the backend through four functions, and carry the bytes to and from a guest's socket.
 *
 * As in a real device: 32 descriptors of 4 KiB a queue towards the guest and 32 KiB a write from it; the poll of the
 * wake is level-triggered; a full backend is waited for; no loop looks at a flag to stop, and the end is a join.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DESCRIPTORS = 32, PAGE = 4096, OUT = 32 * 1024, WOULD_BLOCK = -1 };

struct backend {
    long (*read)(void *buffer, long size);        /* bytes, 0 at end of file, WOULD_BLOCK */
    long (*write)(const void *buffer, long size); /* bytes, or WOULD_BLOCK */
    void (*wait_until_writable)(void);
    void (*guest_gone)(void);
    int wake;
};

struct device {
    struct backend backend;
    int guest;
    pthread_t rx, tx;
    long polls, fragments;
};

static int write_all(int fd, const char *data, long size) {
    while (size > 0) {
        ssize_t n = send(fd, data, (size_t)size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        size -= n;
    }
    return 0;
}

/* Host to guest. */
static void *rx_main(void *argument) {
    struct device *device = argument;
    static __thread char queue[DESCRIPTORS][PAGE];
    int broken = 0;
    for (;;) {
        long sizes[DESCRIPTORS];
        int filled = 0, end = 0;
        while (filled < DESCRIPTORS) {
            long n = device->backend.read(queue[filled], PAGE);
            if (n == WOULD_BLOCK)
                break;
            if (n == 0) {
                end = 1;
                break;
            }
            sizes[filled++] = n;
            device->fragments += n < PAGE;
        }
        for (int i = 0; i < filled && !broken; i++)
            broken = write_all(device->guest, queue[i], sizes[i]) != 0;
        if (end) {
            shutdown(device->guest, SHUT_WR);
            return NULL;
        }
        if (filled < DESCRIPTORS) {
            struct pollfd wake = {.fd = device->backend.wake, .events = POLLIN};
            device->polls++;
            while (poll(&wake, 1, -1) < 0 && errno == EINTR)
                ;
        }
    }
}

/* Guest to host. */
static void *tx_main(void *argument) {
    struct device *device = argument;
    static __thread char page[OUT];
    for (;;) {
        ssize_t n = recv(device->guest, page, sizeof page, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            device->backend.guest_gone();
            return NULL;
        }
        while (device->backend.write(page, n) == WOULD_BLOCK)
            device->backend.wait_until_writable();
    }
}

struct device *device_start(struct backend backend, int guest) {
    struct device *device = calloc(1, sizeof *device);
    device->backend = backend;
    device->guest = guest;
    if (pthread_create(&device->rx, NULL, rx_main, device) || pthread_create(&device->tx, NULL, tx_main, device))
        abort();
    return device;
}

/* Wait for both threads; returns how often the wake was polled. */
long device_join(struct device *device) {
    pthread_join(device->rx, NULL);
    pthread_join(device->tx, NULL);
    long polls = device->polls;
    free(device);
    return polls;
}
