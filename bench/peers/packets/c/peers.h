/* What the peers in C share. */
#ifndef HOLDFAST_BENCH_PEERS_H
#define HOLDFAST_BENCH_PEERS_H

#define PEER_BULK 32
#define PEER_SEED 0x5bd1e995u
/* client 4, service 4, client port 2, service port 2, zero 4 */
#define PEER_KEY4_BYTES 16
/* client 16, service 16, client port 2, service port 2, zero up to a length that rte_hash
 * compares with vector instructions */
#define PEER_KEY6_BYTES 48

#endif
