//! Disks that forget, fill up or decay, beyond what a power cut leaves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use bytes::BytesMut;
use piton_raft::log::Faults;
use piton_raft::{Group, GroupId, NodeId};
use piton_store::frame::{Engine, View};
use piton_store::{KeyRange, Order, Write};
use tokio::time::sleep_until;

use crate::chance::Chance;
use crate::faults::{await_down, restart};
use crate::operator;
use crate::staged::{comes, groups_of};
use crate::world::{End, GROUPS, World, in_ms};

/// Rows of the store that decay at once.
const ROWS: u64 = 4;

/// Flips bits in values of a node's store while it runs. Whoever reads one finds its checksum wrong,
/// and the store is rebuilt; a snapshot reads them all.
pub(crate) async fn decay_store(world: &World, chance: &Chance, node: NodeId) -> bool {
    let before = world.witness().stores_discarded();
    let store = world.store(node);
    let rows = store.engine().scan(KeyRange::all(), Order::Ascending, usize::MAX);
    let rows = rows.unwrap_or_default();
    if rows.is_empty() || !world.is_up(node) {
        return false;
    }
    let flipped = (0..ROWS).map(|_| {
        let row = chance.pick(&rows);
        let mut value = BytesMut::from(row.value.as_ref());
        let at = chance.below(value.len() as u64) as usize;
        value[at] ^= 1 << chance.below(8);
        Write::Put { key: row.key.clone(), value: value.freeze() }
    });
    let written = store.engine().write(flipped.collect()).and_then(|()| store.engine().sync());
    if written.is_err() {
        return false;
    }
    sleep_until(in_ms(chance.between(500, 3_000))).await;
    for group in groups_of(world, node) {
        // Fails, unless all that was flipped has been written over.
        let _ = group.snapshot_now().await;
    }
    comes(|| world.witness().stores_discarded() > before).await
}

/// Flips a bit in the log of a node that is down, before what is proven to be durable. It must not
/// start on that: its promises are in there. Then the bit is set right; that nodes are replaced by others is
/// for operators here.
///
/// # Errors
/// When the node takes the damaged log for a whole one, or does not say where it is damaged.
pub(crate) async fn decay_log(
    world: &World,
    chance: &Chance,
    node: NodeId,
) -> anyhow::Result<bool> {
    world.crash(node, End::Kill);
    let newest = files(world, node, "log").pop();
    let proven = world.proven_bytes(node);
    let Some((path, _)) = newest.filter(|_| proven > 0) else { return Ok(false) };
    let at = chance.below(proven) as usize;
    refuses_to_start(world, chance, node, &path, at).await
}

/// Flips a bit in a snapshot of a node that is down and has lost its store: it cannot be rebuilt. The
/// others fill it anew, as far as it had come before; of a cluster that is not whole nothing is lost
/// besides, as that would be one loss too many.
///
/// # Errors
/// When the node takes the damaged snapshot for a whole one.
pub(crate) async fn decay_snapshot(
    world: &World,
    chance: &Chance,
    node: NodeId,
) -> anyhow::Result<bool> {
    let found = files(world, node, "snapshot");
    if found.is_empty() || !operator::is_whole(world, chance).await {
        return Ok(false);
    }
    world.crash(node, End::Kill);
    world.discard_store(node);
    let (path, bytes) = chance.pick(&found);
    let at = chance.below(*bytes as u64) as usize;
    let (disk, bit) = (world.disk(node), chance.below(8) as u8);
    disk.flip(path, at, bit);
    let shown = path.display();
    world.trace().note(format_args!("flips bit {bit} at {at} of {shown}"));
    let given_up = |world: &World| world.points().count(node, "damaged log has forgotten");
    let before = given_up(world);
    let places: BTreeMap<GroupId, u64> = world
        .running()
        .iter()
        .flat_map(|(.., groups)| GROUPS.into_iter().filter_map(|id| groups.group(id)))
        .map(|group| (group.id(), group.metrics().last_index))
        .collect();
    restart(world).await?;
    ensure!(
        given_up(world) > before,
        "A1: node {node} starts with bit {bit} of byte {at} of {shown} flipped"
    );
    let has_come_as_far =
        |group: &Group| places.get(&group.id()).is_none_or(|p| group.metrics().applied_index >= *p);
    let is_filled = comes(|| {
        let groups = groups_of(world, node);
        !groups.is_empty() && groups.iter().all(has_come_as_far)
    });
    Ok(is_filled.await)
}

/// A node's files of a kind, in order, and their lengths.
fn files(world: &World, node: NodeId, kind: &str) -> Vec<(PathBuf, usize)> {
    let contents = world.disk(node).contents().into_iter();
    let files = contents.map(|(path, bytes)| (path, bytes.len()));
    files.filter(|(path, _)| path.extension().is_some_and(|of| of == kind)).collect()
}

async fn refuses_to_start(
    world: &World,
    chance: &Chance,
    node: NodeId,
    path: &Path,
    at: usize,
) -> anyhow::Result<bool> {
    let disk = world.disk(node);
    let bit = chance.below(8) as u8;
    disk.flip(path, at, bit);
    let shown = path.display();
    world.trace().note(format_args!("flips bit {bit} at {at} of {shown}"));
    let started = world.start(node).await;
    let found = started.err().map(|error| format!("{error:#}"));
    let names_it = found.as_ref().is_some_and(|text| text.contains(&shown.to_string()));
    ensure!(
        names_it,
        "A1: node {node} starts with bit {bit} of byte {at} of {shown} flipped: {found:?}"
    );
    disk.flip(path, at, bit);
    restart(world).await?;
    Ok(true)
}

/// A node's disk is full: what it cannot write down it must not acknowledge. It stops, and finds space
/// when it is started again; if it was a snapshot that found no room, it goes on without.
pub(crate) async fn fill_disk(world: &World, chance: &Chance, node: NodeId) -> bool {
    let disk = world.disk(node);
    let used: usize = disk.contents().iter().map(|(_, bytes)| bytes.len()).sum();
    let capacity = Some(used as u64 + chance.below(8 << 10));
    disk.set_faults(Faults { capacity, ..Faults::default() });
    let is_down = await_down(world, node).await;
    let was_full = disk.refused_for_space() > 0;
    disk.set_faults(Faults::default());
    is_down || was_full
}
