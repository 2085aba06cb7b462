//! Sending nf_tables transactions. The bytes come from `sluice_shared::nft`; here they get into a kernel.

use super::netlink::{Conversation, Refused, Request, messages};
use super::ruleset::{Table, empty_iptables_tables};
use crate::kernel::KernelError;
use netlink_sys::protocols::NETLINK_NETFILTER;
use sluice_shared::op::NftBatch;
use std::collections::BTreeMap;
use std::io;

/// Errors named one by one; the rest are counted.
const ERRORS_NAMED: usize = 5;

/// Commits a batch in the calling thread's namespace, all of it or nothing.
///
/// The socket is opened here and the bytes are sent from here, by a thread that is in that namespace: some platforms
/// (AKS) judge a rule set by its sender's namespace.
pub(super) fn commit(batch: &NftBatch) -> Result<(), KernelError> {
    let call = || format!("commit {} nf_tables messages", batch.labels.len());
    let mut conversation = Conversation::open(NETLINK_NETFILTER)?;
    conversation.make_room(batch.bytes.len()).map_err(|refused| refused.during(call()))?;
    conversation.send(&batch.bytes).map_err(|refused| refused.during(call()))?;
    let refusals = refusals(&mut conversation).map_err(|refused| refused.during(call()))?;
    match explain(&refusals, &batch.labels) {
        None => Ok(()),
        Some((errno, detail)) => {
            Err(KernelError::Call { call: call(), source: io::Error::from_raw_os_error(errno), detail })
        }
    }
}

/// Drops the tables that iptables' nft variant leaves behind when it has taken the last rule out of them. One that
/// gets a rule at this moment stays: the kernel then refuses the whole transaction.
pub(super) fn drop_empty_iptables_tables() -> Result<(), KernelError> {
    let tables = empty_iptables_tables()?;
    if tables.is_empty() {
        return Ok(());
    }
    match commit(&deletion(&tables)) {
        Err(KernelError::Call { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::ENOENT)) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

/// Deletes chains and tables, none of which may hold anything.
fn deletion(tables: &[(Table, Vec<String>)]) -> NftBatch {
    const NFTA_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    let (mut bytes, mut labels) = (Vec::new(), Vec::new());
    let mut add = |label: String, request: Request| {
        bytes.extend(request.finish(labels.len() as u32));
        labels.push(label);
    };
    let marker = |kind: i32| {
        let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        Request::new(kind as u16, 0).fixed(&[0, 0, subsystem[0], subsystem[1]])
    };
    let message = |kind: i32, flags: i32, table: &Table| {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        Request::new(kind, flags).fixed(&[table.family, 0, 0, 0]).string(NFTA_TABLE, &table.name)
    };
    add("begin".into(), marker(libc::NFNL_MSG_BATCH_BEGIN));
    for (table, chains) in tables {
        for chain in chains {
            let request = message(libc::NFT_MSG_DELCHAIN, 0, table).string(NFTA_CHAIN_NAME, chain);
            add(format!("delete chain {table} {chain}"), request);
        }
        add(format!("delete table {table}"), message(libc::NFT_MSG_DELTABLE, libc::NLM_F_NONREC, table));
    }
    add("end".into(), marker(libc::NFNL_MSG_BATCH_END));
    NftBatch { bytes, labels }
}

/// What the kernel refused, by sequence number.
///
/// nfnetlink works within the send call, so every answer is queued when that returns, and silence is success.
fn refusals(conversation: &mut Conversation) -> Result<BTreeMap<u32, Refused>, Refused> {
    let mut refusals = BTreeMap::new();
    loop {
        match conversation.receive(false) {
            Ok(None) => return Ok(refusals),
            Ok(Some(datagram)) => {
                for message in messages(datagram) {
                    if let Some(Err(refused)) = message.acknowledgement() {
                        refusals.entry(message.sequence).or_insert(refused);
                    }
                }
            }
            // More answers than the socket holds. There is one for each message at most, and room was made for
            // twice that, so something is badly wrong; what did arrive says more than this errno.
            Err(refused) if refused.errno() == Some(libc::ENOBUFS) && !refusals.is_empty() => {}
            Err(refused) => return Err(refused),
        }
    }
}

/// The errno that decides, and every refused message by its label.
fn explain(refusals: &BTreeMap<u32, Refused>, labels: &[String]) -> Option<(i32, String)> {
    // A refusal of the whole batch (its sequence number is that of BATCH_BEGIN) comes with no other.
    let (_, first) = refusals.first_key_value()?;
    let errno = first.errno().unwrap_or(libc::EIO);
    let mut lines: Vec<String> = refusals
        .iter()
        .take(ERRORS_NAMED)
        .map(|(sequence, refused)| {
            let label = labels.get(*sequence as usize).map_or("an unknown message", String::as_str);
            let words = if refused.words.is_empty() { String::new() } else { format!(": {}", refused.words) };
            format!("message {sequence}, {label}: {}{words}", refused.source)
        })
        .collect();
    if refusals.len() > ERRORS_NAMED {
        lines.push(format!("and {} more", refusals.len() - ERRORS_NAMED));
    }
    Some((errno, lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_message_is_named_by_its_label() {
        let refused = |errno: i32, words: &str| Refused {
            source: io::Error::from_raw_os_error(errno),
            words: words.into(),
        };
        let labels = ["begin", "add table", "add chain out_nat"].map(String::from);
        let refusals =
            BTreeMap::from([(2, refused(libc::ENOENT, "")), (9, refused(libc::EINVAL, "bad key"))]);
        let (errno, detail) = explain(&refusals, &labels).unwrap();
        assert_eq!(errno, libc::ENOENT);
        assert!(detail.contains("message 2, add chain out_nat: No such file"), "{detail}");
        assert!(detail.contains("message 9, an unknown message"), "{detail}");
        assert!(detail.ends_with(": bad key"), "{detail}");
        assert!(explain(&BTreeMap::new(), &labels).is_none());
    }

    #[test]
    fn many_refusals_are_counted() {
        let refusals =
            (0..9).map(|sequence| (sequence, io::Error::from_raw_os_error(libc::EBUSY).into())).collect();
        let (_, detail) = explain(&refusals, &[]).unwrap();
        assert!(detail.ends_with("and 4 more"), "{detail}");
    }
}
