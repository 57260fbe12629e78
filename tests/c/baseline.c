/*
 * The least that a hand-off can be: accept4, sendmsg, close.
 *
 *   baseline PORT WORKERS CONNECTIONS [ack | reuseport | share]
 *
 * A primary accepts on 127.0.0.1:PORT (0 chooses one, printed as "listening
 * PORT"), passes each connection to the next of WORKERS forked children over a
 * socket pair, and closes its copy. A worker, an event loop, reads the request,
 * answers a tiny reply and closes. After CONNECTIONS connections (0: until SIGTERM) the
 * primary prints one line of JSON with its own CPU time per connection.
 *
 * No ledger, no acknowledgement, no way to survive the death of a worker: a
 * bound to compare with, nothing to use.
 *
 * With `ack` it is the least that a hand-off can be which loses nothing: a worker
 * says a byte for each connection that it takes, and the primary keeps its copy
 * until then. It waits for both its listener and its channels, with epoll.
 *
 * With `reuseport` and `share` there is no hand-off: each worker accepts by
 * itself, one connection at a time, from a SO_REUSEPORT socket of its own or
 * from one that all share. Worker SLOW_SLOT (from 0) rests SLOW_US microseconds
 * before each reply.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORKERS = 64, MOST_HELD = 4096 };

static volatile sig_atomic_t stop;

static void on_signal(int signal) {
    (void)signal;
    stop = 1;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* A connection with as much of its request as has come. */
struct conversation {
    int fd;
    size_t have;
    char request[8192];
};

/* Whether more is to come. The whole request first: closing with unread bytes would reset the client. */
static bool goes_on(struct conversation *it, int id) {
    ssize_t n = read(it->fd, it->request + it->have, sizeof it->request - 1 - it->have);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (n <= 0)
        return false;
    it->have += (size_t)n;
    it->request[it->have] = 0;
    if (!strstr(it->request, "\r\n\r\n"))
        return it->have < sizeof it->request - 1;
    char reply[256];
    int length = snprintf(reply, sizeof reply,
                          "HTTP/1.1 200 OK\r\nx-worker: %d\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n", id);
    if (write(it->fd, reply, (size_t)length) == length)
        shutdown(it->fd, SHUT_WR); /* the primary may still hold its copy */
    return false;
}

/* A connection; -1: none yet, -2: none any more. */
static int received(int channel) {
    char byte;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(channel, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (n <= 0 || !c || c->cmsg_type != SCM_RIGHTS)
        return -2;
    int fd;
    memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

static void watch(int waits, int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(waits, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

/* As simple as a worker can be. */
static void accepting_worker(int listener, int id) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    const char *slow = getenv("SLOW_SLOT"), *us = getenv("SLOW_US");
    useconds_t rest = slow && *slow && atoi(slow) == id - 1 ? (useconds_t)atoi(us ? us : "2000") : 0;
    struct conversation it;
    for (;;) {
        it.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (it.fd < 0)
            continue;
        if (rest)
            usleep(rest);
        it.have = 0;
        while (goes_on(&it, id))
            ;
        close(it.fd);
    }
}

/* An event loop, as most workers are. */
static void worker(int channel, int id, bool acks) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    int waits = epoll_create1(EPOLL_CLOEXEC);
    watch(waits, channel, NULL);
    bool over = false;
    for (long open = 0; !over || open > 0;) {
        struct epoll_event events[64];
        int n = epoll_wait(waits, events, 64, -1);
        for (int e = 0; e < n; e++) {
            struct conversation *it = events[e].data.ptr;
            if (!it) {
                int fd = received(channel);
                if (fd == -2) {
                    over = true;
                    epoll_ctl(waits, EPOLL_CTL_DEL, channel, NULL);
                }
                if (fd < 0)
                    continue;
                open++;
                if (acks && write(channel, "a", 1) != 1)
                    _exit(1);
                it = malloc(sizeof *it);
                if (!it || fcntl(fd, F_SETFL, O_NONBLOCK))
                    die("a connection");
                it->fd = fd;
                it->have = 0;
                watch(waits, fd, it);
            } else if (!goes_on(it, id)) {
                /* The primary's copy would keep it in the set. */
                epoll_ctl(waits, EPOLL_CTL_DEL, it->fd, NULL);
                close(it->fd);
                free(it);
                open--;
            }
        }
    }
    _exit(0);
}

static void pass(int channel, int fd) {
    char byte = 'c';
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    while (sendmsg(channel, &msg, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            die("sendmsg");
}

static int accepted(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno != EINTR && errno != ECONNABORTED && errno != EAGAIN)
        die("accept4");
    return fd;
}

static long hand_over(int listener, const int *channels, int workers, long most) {
    long done = 0;
    while (!stop && (most == 0 || done < most)) {
        int fd = accepted(listener);
        if (fd < 0)
            continue;
        pass(channels[done % workers], fd);
        close(fd);
        done++;
    }
    return done;
}

/* What a worker was handed and has not acknowledged, oldest first. */
struct held {
    int fds[MOST_HELD];
    unsigned first, next;
};

static long hand_over_and_keep(int listener, const int *channels, int workers, long most) {
    static struct held held[MOST_WORKERS + 1];
    int waits = epoll_create1(EPOLL_CLOEXEC);
    watch(waits, listener, &held[MOST_WORKERS]);
    for (int i = 0; i < workers; i++)
        watch(waits, channels[i], &held[i]);
    long done = 0, taken = 0;
    while (!stop && (most == 0 || taken < most)) {
        struct epoll_event events[MOST_WORKERS + 1];
        int n = epoll_wait(waits, events, MOST_WORKERS + 1, -1);
        for (int e = 0; e < n; e++) {
            long i = (struct held *)events[e].data.ptr - held;
            if (i == MOST_WORKERS) {
                struct held *to = &held[done % workers];
                int fd = to->next - to->first < MOST_HELD ? accepted(listener) : -1;
                if (fd < 0)
                    continue;
                pass(channels[done % workers], fd);
                to->fds[to->next++ % MOST_HELD] = fd;
                done++;
            } else {
                char bytes[4096];
                for (ssize_t got = recv(channels[i], bytes, sizeof bytes, MSG_DONTWAIT); got > 0; got--, taken++)
                    close(held[i].fds[held[i].first++ % MOST_HELD]);
            }
        }
    }
    close(waits);
    return taken;
}

static int listening(struct sockaddr_in *addr, int flags, bool reuseport) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, reuseport ? SO_REUSEPORT : SO_REUSEADDR, &on, sizeof on);
    socklen_t len = sizeof *addr;
    if (bind(listener, (struct sockaddr *)addr, len) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)addr, &len))
        die("listen");
    return listener;
}

int main(int argc, char **argv) {
    const char *mode = argc == 5 ? argv[4] : "";
    bool acks = !strcmp(mode, "ack"), reuseport = !strcmp(mode, "reuseport"), share = !strcmp(mode, "share");
    if (argc != 4 && !acks && !reuseport && !share) {
        fprintf(stderr, "usage: %s PORT WORKERS CONNECTIONS [ack | reuseport | share]\n", argv[0]);
        return 2;
    }
    int port = atoi(argv[1]), workers = atoi(argv[2]);
    long most = atol(argv[3]);
    if (workers < 1 || workers > MOST_WORKERS)
        return 2;

    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = listening(&addr, acks ? SOCK_NONBLOCK : 0, reuseport);

    int channels[MOST_WORKERS];
    for (int i = 0; i < workers; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
            die("socketpair");
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0 && (reuseport || share))
            accepting_worker(reuseport && i > 0 ? listening(&addr, 0, true) : listener, i + 1);
        if (pid == 0) {
            close(listener);
            close(pair[0]);
            for (int j = 0; j < i; j++)
                close(channels[j]);
            worker(pair[1], i + 1, acks);
        }
        close(pair[1]);
        channels[i] = pair[0];
    }

    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    printf("listening %d\n", ntohs(addr.sin_port));
    fflush(stdout);

    if (reuseport || share) {
        if (reuseport) /* the first worker's now: here nobody accepts */
            close(listener);
        while (!stop)
            pause();
        return 0;
    }

    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    long done = acks ? hand_over_and_keep(listener, channels, workers, most)
                     : hand_over(listener, channels, workers, most);
    getrusage(RUSAGE_SELF, &after);
#define MICROS(t) ((double)(after.t.tv_sec - before.t.tv_sec) * 1e6 + (double)(after.t.tv_usec - before.t.tv_usec))
    double user = MICROS(ru_utime), system = MICROS(ru_stime);
    printf("{\"connections\":%ld,\"user_us\":%.0f,\"system_us\":%.0f,\"cpu_us_per_connection\":%.3f}\n", done, user,
           system, done ? (user + system) / (double)done : 0.0);
    fflush(stdout);

    for (int i = 0; i < workers; i++)
        close(channels[i]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
