/*
 * The least that a hand-off can be: accept4, sendmsg, close.
 *
 *   baseline PORT WORKERS CONNECTIONS
 *
 * A primary accepts on 127.0.0.1:PORT (0 chooses one, printed as "listening
 * PORT"), passes each connection to the next of WORKERS forked children over a
 * socket pair, and closes its copy. A worker reads the request, answers a tiny
 * reply and closes. After CONNECTIONS connections (0: until SIGTERM) the
 * primary prints one line of JSON with its own CPU time per connection.
 *
 * No ledger, no acknowledgement, no way to survive the death of a worker: a
 * bound to compare with, nothing to use.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORKERS = 64 };

static volatile sig_atomic_t stop;

static void on_signal(int signal) {
    (void)signal;
    stop = 1;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Reads the whole request: closing with unread bytes would reset the client. */
static void serve(int fd, int id) {
    char request[8192], reply[256];
    size_t have = 0;
    while (have < sizeof request - 1) {
        ssize_t n = read(fd, request + have, sizeof request - 1 - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        have += (size_t)n;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    int n = snprintf(reply, sizeof reply,
                     "HTTP/1.1 200 OK\r\nx-worker: %d\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n", id);
    if (write(fd, reply, (size_t)n) != n)
        return;
}

static void worker(int channel, int id) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        char byte;
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec iov = {&byte, 1};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(channel, &msg, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            _exit(0);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        if (!c || c->cmsg_type != SCM_RIGHTS)
            continue;
        int fd;
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
        serve(fd, id);
        close(fd);
    }
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

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s PORT WORKERS CONNECTIONS\n", argv[0]);
        return 2;
    }
    int port = atoi(argv[1]), workers = atoi(argv[2]);
    long most = atol(argv[3]);
    if (workers < 1 || workers > MOST_WORKERS)
        return 2;

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&addr, &len))
        die("listen");

    int channels[MOST_WORKERS];
    for (int i = 0; i < workers; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
            die("socketpair");
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            close(listener);
            close(pair[0]);
            for (int j = 0; j < i; j++)
                close(channels[j]);
            worker(pair[1], i + 1);
        }
        close(pair[1]);
        channels[i] = pair[0];
    }

    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    printf("listening %d\n", ntohs(addr.sin_port));
    fflush(stdout);

    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    long done = 0;
    while (!stop && (most == 0 || done < most)) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            die("accept4");
        }
        pass(channels[done % workers], fd);
        close(fd);
        done++;
    }
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
