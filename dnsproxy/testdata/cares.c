// Prints the addresses of a name as c-ares finds them, the resolver of Envoy, curl and Node.js. For TestRealClients.
#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <sys/select.h>

static int done;

static void found(void *unused, int status, int timeouts, struct ares_addrinfo *result) {
	done = 1;
	if (status != ARES_SUCCESS) {
		puts(ares_strerror(status));
		return;
	}
	for (struct ares_addrinfo_node *n = result->nodes; n; n = n->ai_next) {
		char text[INET6_ADDRSTRLEN];
		void *addr = n->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)n->ai_addr)->sin_addr
						     : (void *)&((struct sockaddr_in6 *)n->ai_addr)->sin6_addr;
		puts(inet_ntop(n->ai_family, addr, text, sizeof text));
	}
	ares_freeaddrinfo(result);
}

int main(int argc, char **argv) {
	ares_channel channel;
	struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC};
	if (ares_library_init(ARES_LIB_INIT_ALL) || ares_init(&channel))
		return 1;
	ares_getaddrinfo(channel, argv[1], NULL, &hints, found, NULL);
	while (!done) {
		fd_set readers, writers;
		FD_ZERO(&readers);
		FD_ZERO(&writers);
		int count = ares_fds(channel, &readers, &writers);
		struct timeval limit, *wait = ares_timeout(channel, NULL, &limit);
		select(count, &readers, &writers, NULL, wait);
		ares_process(channel, &readers, &writers);
	}
	ares_destroy(channel);
	return 0;
}
