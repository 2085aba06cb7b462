//! Sending nf_tables transactions. The bytes come from `sluice_shared::nft`; here they get into a kernel.

use super::netlink::{Conversation, Refused, messages};
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
