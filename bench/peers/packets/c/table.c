/*
 * The session table's peer in C: rte_hash, lock-free for readers, driven as DPDK's guide says.
 * Lookups go in bulks of 32 with hashes made before; keys have a length that rte_hash compares
 * without memcmp.
 */
#include <stdint.h>
#include <stddef.h>

#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_lcore.h>

#include "peers.h"

struct rte_hash *peer_hash_create(const char *name, uint32_t entries, uint32_t key_bytes)
{
	struct rte_hash_parameters parameters = {
		.name = name,
		.entries = entries,
		.key_len = key_bytes,
		.hash_func = rte_hash_crc,
		.hash_func_init_val = PEER_SEED,
		.socket_id = (int)rte_socket_id(),
		.extra_flag = RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF,
	};
	return rte_hash_create(&parameters);
}

void peer_hash_free(struct rte_hash *hash)
{
	rte_hash_free(hash);
}

static __rte_always_inline uint64_t hits_of(const struct rte_hash *hash, const uint8_t *keys,
					    uint32_t key_bytes, uint32_t count, uint64_t *sum)
{
	const void *pointers[PEER_BULK];
	hash_sig_t signatures[PEER_BULK];
	void *data[PEER_BULK];
	uint64_t found = 0, total = 0;

	for (uint32_t at = 0; at + PEER_BULK <= count; at += PEER_BULK) {
		uint64_t mask = 0;
		for (uint32_t i = 0; i < PEER_BULK; i++) {
			pointers[i] = keys + (size_t)(at + i) * key_bytes;
			signatures[i] = rte_hash_crc(pointers[i], key_bytes, PEER_SEED);
		}
		int hits = rte_hash_lookup_with_hash_bulk_data(hash, pointers, signatures,
							       PEER_BULK, &mask, data);
		if (hits > 0)
			found += (uint32_t)hits;
		for (uint64_t left = mask; left != 0; left &= left - 1)
			total += (uintptr_t)data[__builtin_ctzll(left)];
	}
	*sum += total;
	return found;
}

/* A multiple of PEER_BULK keys; returns how many are there and adds up their data. */
uint64_t peer_hash_hits(const struct rte_hash *hash, const uint8_t *keys, uint32_t key_bytes,
			uint32_t count, uint64_t *sum)
{
	if (key_bytes == PEER_KEY4_BYTES)
		return hits_of(hash, keys, PEER_KEY4_BYTES, count, sum);
	return hits_of(hash, keys, PEER_KEY6_BYTES, count, sum);
}

/* Returns how many were inserted. */
uint32_t peer_hash_insert(struct rte_hash *hash, const uint8_t *keys, uint32_t key_bytes,
			  uint32_t count, uint64_t value)
{
	uint32_t done = 0;
	for (uint32_t i = 0; i < count; i++) {
		const void *key = keys + (size_t)i * key_bytes;
		done += rte_hash_add_key_data(hash, key, (void *)(uintptr_t)(value + i)) == 0;
	}
	return done;
}

/*
 * Returns how many were removed. A removed key's place is given back at once: a real user would
 * wait for the readers to have passed first.
 */
uint32_t peer_hash_remove(struct rte_hash *hash, const uint8_t *keys, uint32_t key_bytes,
			  uint32_t count)
{
	uint32_t done = 0;
	for (uint32_t i = 0; i < count; i++) {
		int32_t position = rte_hash_del_key(hash, keys + (size_t)i * key_bytes);
		done += position >= 0 && rte_hash_free_key_with_position(hash, position) == 0;
	}
	return done;
}
