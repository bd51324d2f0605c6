//! The text of `show routing`.

use crate::protocol::{RoutingBucket, RoutingReply};

use super::Table;
use super::peers::peer_table;

/// `show routing`.
#[must_use]
pub fn routing(reply: &RoutingReply) -> String {
    let mut table = Table::new(&["BUCKET", "CONTACTS", "SUSPECT", "FULL", "WAITING"], &[1, 2, 4]);
    for bucket in &reply.buckets {
        table.row(vec![
            prefix(bucket),
            bucket.contacts.to_string(),
            bucket.suspect.to_string(),
            if bucket.full { "yes" } else { "no" }.to_owned(),
            bucket.waiting.to_string(),
        ]);
    }
    let contacts: u64 = reply.buckets.iter().map(|bucket| bucket.contacts).sum();
    let suspect: u64 = reply.buckets.iter().map(|bucket| bucket.suspect).sum();
    let mut text = format!(
        "this server  {}\nbuckets      {} contacts in each at most, {} bits a level\n\n{}",
        reply.id,
        reply.k,
        reply.bucket_bits,
        table.render()
    );
    let peers = reply.buckets.iter().flat_map(|bucket| &bucket.peers).chain(&reply.absent);
    let peers: Vec<_> = peers.cloned().collect();
    if !peers.is_empty() {
        text += &format!("\n{}", peer_table(&peers));
    }
    let more = if reply.truncated { "; --limit shows more" } else { "" };
    text + &format!(
        "\n{contacts} contacts, {suspect} suspect, {} absent{more}\n",
        reply.absent.len()
    )
}

/// The bits that count, as in `a3/8`.
fn prefix(bucket: &RoutingBucket) -> String {
    let digits = (bucket.prefix_bits as usize).div_ceil(4).clamp(1, 32);
    let digits: String = bucket.prefix.chars().take(digits).collect();
    format!("{digits}/{}", bucket.prefix_bits)
}
