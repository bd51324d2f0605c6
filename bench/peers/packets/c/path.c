/*
 * The packet path's peers in C: testpmd's macswap, and holdfast's redirect path as a DPDK
 * programmer would write it around rte_hash. Each turn is a burst in, a burst out.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <netinet/in.h>
#include <immintrin.h>

#include <rte_ethdev.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_ip.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_prefetch.h>
#include <rte_tcp.h>
#include <rte_udp.h>

#include "peers.h"

/* --- macswap, after app/test-pmd/macswap_sse.h ---------------------------------------- */

static inline void swap_macs(struct rte_mbuf *m)
{
	const __m128i order = _mm_set_epi8(15, 14, 13, 12, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6);
	__m128i *front = rte_pktmbuf_mtod(m, __m128i *);
	_mm_storeu_si128(front, _mm_shuffle_epi8(_mm_loadu_si128(front), order));
	m->ol_flags &= RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL;
	m->tx_offload = sizeof(struct rte_ether_hdr) |
			(uint64_t)sizeof(struct rte_ipv4_hdr) << RTE_MBUF_L2_LEN_BITS;
	m->vlan_tci = 0;
}

static void send_all(uint16_t port, uint16_t queue, struct rte_mbuf **burst, uint16_t count)
{
	uint16_t sent = rte_eth_tx_burst(port, queue, burst, count);
	if (unlikely(sent < count))
		rte_pktmbuf_free_bulk(burst + sent, count - sent);
}

/* One burst; how many frames. */
uint32_t peer_macswap_turn(uint16_t port, uint16_t queue)
{
	struct rte_mbuf *burst[PEER_BULK];
	uint16_t count = rte_eth_rx_burst(port, queue, burst, PEER_BULK);
	uint16_t i = 0;

	if (unlikely(count == 0))
		return 0;
	for (; i + 4 <= count; i += 4) {
		for (uint16_t next = i + 4; next < i + 8 && next < count; next++)
			rte_prefetch0(rte_pktmbuf_mtod(burst[next], void *));
		swap_macs(burst[i]);
		swap_macs(burst[i + 1]);
		swap_macs(burst[i + 2]);
		swap_macs(burst[i + 3]);
	}
	for (; i < count; i++)
		swap_macs(burst[i]);
	send_all(port, queue, burst, count);
	return count;
}

/* --- the redirect path ------------------------------------------------------------------ */

enum { COUNT_RECEIVED, COUNT_HIT, COUNT_MISS, COUNT_OTHER, COUNT_SENT, COUNTERS };

#define OWNERS 8
#define GUE_BYTES 4
#define OUTER_MAX (sizeof(struct rte_ipv4_hdr) + sizeof(struct rte_udp_hdr) + GUE_BYTES)

/* What is known of a flow, by its position in the hash; eight of them share a line. */
struct session {
	uint32_t last_seen;
	uint16_t owner;
	uint16_t state;
};

/* An owner's outer header, but for the lengths, the checksum and the port of the flow. */
struct owner {
	uint8_t outer[OUTER_MAX];
	uint32_t sum;
};

struct peer_path {
	struct rte_hash *hash;
	struct session *sessions;
	uint64_t counters[COUNTERS];
	struct owner owners[OWNERS];
	uint8_t service4[4];
	uint8_t service6[16];
	uint16_t service_port;
	uint16_t port;
	uint16_t queue;
	uint32_t tick;
	bool gue;
};

struct peer_path_plan {
	struct rte_hash *hash;
	uint8_t service4[4];
	uint8_t service6[16];
	uint8_t local[4];
	uint8_t first_owner[4];
	uint16_t service_port;
	uint16_t tunnel_port;
	uint16_t port;
	uint16_t queue;
	uint32_t gue;
};

static void make_template(struct owner *owner, const struct peer_path_plan *plan, uint8_t number)
{
	struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)owner->outer;
	struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(ip + 1);
	uint8_t remote[4];

	memcpy(remote, plan->first_owner, sizeof(remote));
	remote[3] += number;
	ip->version_ihl = 0x45;
	ip->fragment_offset = rte_cpu_to_be_16(RTE_IPV4_HDR_DF_FLAG);
	ip->time_to_live = 64;
	ip->next_proto_id = plan->gue ? IPPROTO_UDP : IPPROTO_IPIP;
	memcpy(&ip->src_addr, plan->local, 4);
	memcpy(&ip->dst_addr, remote, 4);
	udp->dst_port = rte_cpu_to_be_16(plan->tunnel_port);
	owner->sum = rte_raw_cksum(ip, sizeof(*ip));
}

struct peer_path *peer_path_create(const struct peer_path_plan *plan)
{
	struct peer_path *path = rte_zmalloc("path", sizeof(*path), RTE_CACHE_LINE_SIZE);
	if (path == NULL)
		return NULL;
	size_t places = (size_t)rte_hash_max_key_id(plan->hash) + 1;
	path->sessions = rte_zmalloc("sessions", places * sizeof(struct session),
				     RTE_CACHE_LINE_SIZE);
	if (path->sessions == NULL) {
		rte_free(path);
		return NULL;
	}
	path->hash = plan->hash;
	memcpy(path->service4, plan->service4, sizeof(path->service4));
	memcpy(path->service6, plan->service6, sizeof(path->service6));
	path->service_port = rte_cpu_to_be_16(plan->service_port);
	path->port = plan->port;
	path->queue = plan->queue;
	path->gue = plan->gue;
	for (uint8_t i = 0; i < OWNERS; i++)
		make_template(&path->owners[i], plan, i);
	return path;
}

void peer_path_free(struct peer_path *path)
{
	rte_free(path->sessions);
	rte_free(path);
}

/* Writes the sessions of keys that are in the hash; how many were. */
uint32_t peer_path_fill(struct peer_path *path, const uint8_t *keys, uint32_t key_bytes,
			uint32_t count, uint32_t first)
{
	uint32_t done = 0;
	for (uint32_t i = 0; i < count; i++) {
		int32_t at = rte_hash_lookup(path->hash, keys + (size_t)i * key_bytes);
		if (at < 0)
			continue;
		path->sessions[at].owner = (first + i) % OWNERS;
		done++;
	}
	return done;
}

void peer_path_tick(struct peer_path *path, uint32_t tick)
{
	path->tick = tick;
}

uint64_t peer_path_hits(const struct peer_path *path)
{
	return path->counters[COUNT_HIT];
}

/* A service's TCP segment in IPv4: fills in its key. */
static inline bool parse4(const struct peer_path *path, const uint8_t *data, uint32_t length,
			  uint8_t *key)
{
	const struct rte_ipv4_hdr *ip = (const void *)(data + sizeof(struct rte_ether_hdr));
	uint32_t header = (ip->version_ihl & 15) * 4u;
	uint32_t total = rte_be_to_cpu_16(ip->total_length);

	if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip) ||
	    total < header + sizeof(struct rte_tcp_hdr) ||
	    total + sizeof(struct rte_ether_hdr) > length ||
	    ip->next_proto_id != IPPROTO_TCP ||
	    (ip->fragment_offset & rte_cpu_to_be_16(0x3fff)) != 0)
		return false;
	const struct rte_tcp_hdr *tcp = (const void *)((const uint8_t *)ip + header);
	if (memcmp(&ip->dst_addr, path->service4, 4) != 0 || tcp->dst_port != path->service_port ||
	    (tcp->tcp_flags & (RTE_TCP_SYN_FLAG | RTE_TCP_ACK_FLAG)) == RTE_TCP_SYN_FLAG)
		return false;
	memcpy(key, &ip->src_addr, 8);
	memcpy(key + 8, &tcp->src_port, 4);
	memset(key + 12, 0, PEER_KEY4_BYTES - 12);
	return true;
}

/* The same in IPv6, without extension headers. */
static inline bool parse6(const struct peer_path *path, const uint8_t *data, uint32_t length,
			  uint8_t *key)
{
	const struct rte_ipv6_hdr *ip = (const void *)(data + sizeof(struct rte_ether_hdr));
	const struct rte_tcp_hdr *tcp = (const void *)(ip + 1);
	uint32_t payload = rte_be_to_cpu_16(ip->payload_len);

	if ((ip->vtc_flow & rte_cpu_to_be_32(0xf0000000)) != rte_cpu_to_be_32(0x60000000) ||
	    ip->proto != IPPROTO_TCP || payload < sizeof(*tcp) ||
	    payload + sizeof(*ip) + sizeof(struct rte_ether_hdr) > length ||
	    memcmp(ip->dst_addr, path->service6, 16) != 0 || tcp->dst_port != path->service_port ||
	    (tcp->tcp_flags & (RTE_TCP_SYN_FLAG | RTE_TCP_ACK_FLAG)) == RTE_TCP_SYN_FLAG)
		return false;
	memcpy(key, ip->src_addr, 32);
	memcpy(key + 32, &tcp->src_port, 4);
	memset(key + 36, 0, PEER_KEY6_BYTES - 36);
	return true;
}

/* Puts the packet into the tunnel to its owner, back to where it came from. */
static __rte_always_inline void encapsulate(struct peer_path *path, struct rte_mbuf *m,
					    const struct owner *owner, uint32_t entropy, bool v6,
					    bool gue)
{
	const uint32_t overhead = gue ? OUTER_MAX : sizeof(struct rte_ipv4_hdr);
	const __m128i order = _mm_set_epi8(15, 14, 13, 12, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6);
	uint8_t *old = rte_pktmbuf_mtod(m, uint8_t *);
	__m128i link = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)old), order);
	uint32_t inner = m->pkt_len - sizeof(struct rte_ether_hdr);
	uint8_t *new = (uint8_t *)rte_pktmbuf_prepend(m, overhead);

	_mm_storeu_si128((__m128i *)new, link);
	struct rte_ether_hdr *ethernet = (void *)new;
	ethernet->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	struct rte_ipv4_hdr *ip = (void *)(ethernet + 1);
	memcpy(ip, owner->outer, overhead);
	uint16_t total = rte_cpu_to_be_16(inner + overhead);
	ip->total_length = total;
	if (!gue && v6)
		ip->next_proto_id = IPPROTO_IPV6;
	uint32_t sum = owner->sum + total;
	if (!gue && v6)
		sum += rte_cpu_to_be_16(IPPROTO_IPV6) - rte_cpu_to_be_16(IPPROTO_IPIP);
	sum = (sum >> 16) + (sum & 0xffff);
	sum += sum >> 16;
	ip->hdr_checksum = (uint16_t)~sum;
	if (!gue)
		return;
	struct rte_udp_hdr *udp = (void *)(ip + 1);
	udp->src_port = rte_cpu_to_be_16(0xc000 | (entropy & 0x3fff));
	udp->dgram_len = rte_cpu_to_be_16(inner + sizeof(*udp) + GUE_BYTES);
	((uint8_t *)(udp + 1))[1] = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

static __rte_always_inline void act(struct peer_path *path, struct rte_mbuf *m, int32_t position,
				    uint32_t signature, bool v6, bool gue)
{
	struct session *session = &path->sessions[position];
	if (session->last_seen != path->tick)
		session->last_seen = path->tick;
	encapsulate(path, m, &path->owners[session->owner % OWNERS], signature >> 16, v6, gue);
}

static __rte_always_inline uint32_t turn(struct peer_path *path, uint32_t key_bytes, bool v6,
					 bool gue)
{
	struct rte_mbuf *burst[PEER_BULK], *segments[PEER_BULK], *out[PEER_BULK];
	uint8_t keys[PEER_BULK][PEER_KEY6_BYTES] __rte_aligned(16);
	const void *pointers[PEER_BULK];
	hash_sig_t signatures[PEER_BULK];
	int32_t positions[PEER_BULK];
	uint32_t count = 0, ready = 0;
	uint16_t received = rte_eth_rx_burst(path->port, path->queue, burst, PEER_BULK);

	if (unlikely(received == 0))
		return 0;
	for (uint16_t i = 0; i < received; i++)
		rte_prefetch0(rte_pktmbuf_mtod(burst[i], void *));
	path->counters[COUNT_RECEIVED] += received;
	for (uint16_t i = 0; i < received; i++) {
		const uint8_t *data = rte_pktmbuf_mtod(burst[i], const uint8_t *);
		uint32_t length = rte_pktmbuf_data_len(burst[i]);
		uint16_t type = ((const struct rte_ether_hdr *)data)->ether_type;
		bool known = type == rte_cpu_to_be_16(v6 ? RTE_ETHER_TYPE_IPV6
							  : RTE_ETHER_TYPE_IPV4);
		if (!known || !(v6 ? parse6(path, data, length, keys[count])
				   : parse4(path, data, length, keys[count]))) {
			path->counters[COUNT_OTHER]++;
			out[ready++] = burst[i];
			continue;
		}
		pointers[count] = keys[count];
		signatures[count] = rte_hash_crc(keys[count], key_bytes, PEER_SEED);
		segments[count++] = burst[i];
	}
	if (likely(count > 0))
		rte_hash_lookup_with_hash_bulk(path->hash, pointers, signatures, count, positions);
	for (uint32_t i = 0; i < count; i++)
		if (likely(positions[i] >= 0))
			rte_prefetch0(&path->sessions[positions[i]]);
	for (uint32_t i = 0; i < count; i++) {
		out[ready++] = segments[i];
		if (unlikely(positions[i] < 0)) {
			path->counters[COUNT_MISS]++;
			continue;
		}
		path->counters[COUNT_HIT]++;
		act(path, segments[i], positions[i], signatures[i], v6, gue);
	}
	path->counters[COUNT_SENT] += ready;
	send_all(path->port, path->queue, out, ready);
	return received;
}

/* One burst of IPv4 (or, with v6, of IPv6); how many frames. */
uint32_t peer_path_turn(struct peer_path *path, uint32_t v6)
{
	if (v6)
		return path->gue ? turn(path, PEER_KEY6_BYTES, true, true)
				 : turn(path, PEER_KEY6_BYTES, true, false);
	return path->gue ? turn(path, PEER_KEY4_BYTES, false, true)
			 : turn(path, PEER_KEY4_BYTES, false, false);
}
