/* What holdfast uses of DPDK. build.rs turns it into Rust; constants that DPDK
 * writes as function-like macros (RTE_BIT64) and thread-local variables are
 * given a form here that bindgen understands. */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_tun.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* rte_errno is a thread-local variable behind a macro. */
static inline int holdfast_rte_errno(void) { return rte_errno; }

/* DPDK writes its log to stderr and to syslog, unless it has a stream of its own. */
static inline int holdfast_log_to_stderr(void) { return rte_openlog_stream(stderr); }

/* Sets every real-time signal but the first that has its default action to be ignored. */
static inline void holdfast_ignore_realtime_signals(void)
{
	for (int signo = SIGRTMIN + 1; signo < SIGRTMAX; signo++) {
		struct sigaction action;

		if (sigaction(signo, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
			signal(signo, SIG_IGN);
	}
}

/* Makes the TAP interface `name`, or takes it if it is there, gives it the Ethernet address `mac`,
 * and holds it by a queue that is detached: the kernel sends nothing there, and takes the interface
 * for one that is in use. Returns the queue, or a negative errno. */
static inline int holdfast_hold_tap(const char *name, const uint8_t *mac)
{
	struct ifreq request;
	int queue = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (queue < 0)
		return -errno;
	memset(&request, 0, sizeof(request));
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	/* What the first queue asks for holds for all: this is what net_tap reads and writes, with a
	 * struct tun_pi before each frame. */
	request.ifr_flags = IFF_TAP | IFF_MULTI_QUEUE;
	if (ioctl(queue, TUNSETIFF, &request) < 0)
		goto failed;
	request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
	memcpy(request.ifr_hwaddr.sa_data, mac, 6);
	if (ioctl(queue, SIOCSIFHWADDR, &request) < 0)
		goto failed;
	request.ifr_flags = IFF_DETACH_QUEUE;
	if (ioctl(queue, TUNSETQUEUE, &request) == 0)
		return queue;
failed:
	{
		int error = errno;

		close(queue);
		return -error;
	}
}

static const uint32_t HOLDFAST_DEV_INTR_LSC = RTE_ETH_DEV_INTR_LSC;
static const uint32_t HOLDFAST_DEV_INTR_RMV = RTE_ETH_DEV_INTR_RMV;

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

static const uint64_t HOLDFAST_RX_OFFLOAD_VLAN_STRIP = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
static const uint64_t HOLDFAST_TX_OFFLOAD_VLAN_INSERT = RTE_ETH_TX_OFFLOAD_VLAN_INSERT;

static const uint64_t HOLDFAST_MBUF_RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
static const uint64_t HOLDFAST_MBUF_TX_VLAN = RTE_MBUF_F_TX_VLAN;
static const uint64_t HOLDFAST_MBUF_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM | RTE_MBUF_F_TX_IPV4;
static const uint64_t HOLDFAST_MBUF_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
