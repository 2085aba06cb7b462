//! What the kernel seam is asked to do: effects as data, so that their order and content are tested without root.

use crate::ids::Family;
use std::collections::BTreeSet;

/// One effect in one network namespace. Each is idempotent: what is there already, or gone already, is success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelOp {
    /// `ip link set lo up`. ztunnel's listeners and the local route need it; it is not taken down again.
    LoopbackUp,
    /// `ip rule fwmark 0x111/0xfff lookup 100 pref 32764`. To be there includes that no rule before it sends packets
    /// with exactly this mark elsewhere: such rules are removed.
    PolicyRule(Family, Presence),
    /// `ip route local default dev lo table 100`. To be there includes that it is the default route of that table
    /// which is chosen: others that would be are removed. An IPv6 route that the namespace cannot have (IPv6 off on `lo`)
    /// is not an error.
    LocalRoute(Family, Presence),
    /// Forget every connection of the namespace, so that none is taken for one that was there before.
    FlushConntrack,
    /// Forget the TCP connections that nobody translates and that did not come through ztunnel: what a repair must
    /// not let live, while proxied connections keep their translation.
    ForgetDirect,
    /// Make conntrack remember TCP connections of which one direction is closed for a day, or for the kernel's own two
    /// minutes at most again. What it forgets of a proxied connection is how to translate it: ztunnel's
    /// next packet would leave with the wrong source, and the application's would go to the wrong socket. Where the
    /// kernel or the container forbids this it is left undone, with a warning.
    RememberHalfClosed(Presence),
    /// Take every chain of ours, and every jump to one, out of iptables, whatever part of them is there.
    ClearIptables,
    /// Take these chains of somebody else's, and the jumps to them, out of a table of ip_tables or ip6_tables, in one
    /// exchange of the table; all other rules stay, with their counters. No program is executed.
    LegacyWithout {
        /// Which of ip_tables and ip6_tables.
        family: Family,
        /// The table.
        table: String,
        /// The chains.
        chains: BTreeSet<String>,
    },
    /// Destroy an ipset that no rule names any more.
    DestroyIpset(String),
    /// One nf_tables transaction.
    NftBatch(NftBatch),
    /// One `iptables-restore --noflush` run.
    IptablesRestore(RestoreScript),
}

/// Whether something is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Make it so.
    Present,
    /// Take it away.
    Absent,
}

/// A complete nf_tables transaction: `NFNL_MSG_BATCH_BEGIN` … `NFNL_MSG_BATCH_END`, ready to send as one datagram.
///
/// With thousands of kept connections it has megabytes, more than a socket's default send buffer (`SO_SNDBUFFORCE`).
/// The last message before `NFNL_MSG_BATCH_END` asks for an acknowledgement, which comes once the transaction has been
/// committed or thrown away. Every message at fault is answered with an error of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct NftBatch {
    /// The netlink messages. Sequence numbers count from 0 (BATCH_BEGIN) without gap, so that an error names its message.
    pub bytes: Vec<u8>,
    /// What each message does, by sequence number: for errors.
    pub labels: Vec<String>,
}

/// How much of ours there is in iptables' tables. Less than was written means that somebody took some of it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Jumps to our chains with which others begin.
    pub jumps: usize,
    /// Rules in our chains.
    pub rules: usize,
}

/// One family's `iptables-restore` input. Each table commits by itself, NAT last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreScript {
    /// Which of `iptables-restore` and `ip6tables-restore` reads it.
    pub family: Family,
    /// The input, `COMMIT` lines included.
    pub text: String,
}

impl std::ops::Add for Extent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { jumps: self.jumps + other.jumps, rules: self.rules + other.rules }
    }
}

impl std::fmt::Debug for NftBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NftBatch").field("bytes", &self.bytes.len()).field("labels", &self.labels).finish()
    }
}
