// Prints the addresses of a name as the C library finds them. For TestRealClients: glibc has getent, musl has nothing.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv) {
	struct addrinfo *all, hints = {.ai_socktype = SOCK_STREAM};
	int error = getaddrinfo(argv[1], NULL, &hints, &all);
	if (error) {
		printf("%s\n", gai_strerror(error));
		return 1;
	}
	for (struct addrinfo *a = all; a; a = a->ai_next) {
		char text[INET6_ADDRSTRLEN];
		void *addr = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
						     : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
		puts(inet_ntop(a->ai_family, addr, text, sizeof text));
	}
	return 0;
}
