/* What holdfast uses of DPDK. build.rs turns it into Rust; constants that DPDK
 * writes as function-like macros (RTE_BIT64) and thread-local variables are
 * given a form here that bindgen understands. */

#include <signal.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* rte_errno is a thread-local variable behind a macro. */
static inline int holdfast_rte_errno(void) { return rte_errno; }

/* Sets every real-time signal but the first that has its default action to be ignored. */
static inline void holdfast_ignore_realtime_signals(void)
{
	for (int signo = SIGRTMIN + 1; signo < SIGRTMAX; signo++) {
		struct sigaction action;

		if (sigaction(signo, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
			signal(signo, SIG_IGN);
	}
}

static const uint64_t HOLDFAST_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t HOLDFAST_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t HOLDFAST_RSS_UDP = RTE_ETH_RSS_UDP;

static const uint64_t HOLDFAST_RX_OFFLOAD_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t HOLDFAST_RX_OFFLOAD_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t HOLDFAST_RX_OFFLOAD_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t HOLDFAST_RX_OFFLOAD_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t HOLDFAST_RX_OFFLOAD_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t HOLDFAST_TX_OFFLOAD_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t HOLDFAST_TX_OFFLOAD_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t HOLDFAST_TX_OFFLOAD_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t HOLDFAST_TX_OFFLOAD_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;

static const uint64_t HOLDFAST_MBUF_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
