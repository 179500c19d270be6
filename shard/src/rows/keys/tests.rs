use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

type Random = SmallRng;

fn text(random: &mut Random) -> String {
    const ALPHABET: [char; 8] = ['\0', '\u{1}', '\u{2}', 'a', 'b', '/', 'é', '\u{10ffff}'];
    let length = random.random_range(0..5);
    (0..length).map(|_| ALPHABET[random.random_range(0..ALPHABET.len())]).collect()
}

fn time(random: &mut Random) -> i64 {
    match random.random_range(0..4) {
        0 => random.random_range(-3..3),
        1 => [i64::MIN, i64::MAX, i64::MIN + 1][random.random_range(0..3)],
        _ => random.next_u64().cast_signed(),
    }
}

fn workflow(random: &mut Random) -> Entity<String> {
    let (slot, kind) = (random.random_range(0..4), EntityKind::Workflow);
    Entity { slot, kind, namespace: text(random), id: text(random) }
}

fn timer(random: &mut Random) -> Timer<String> {
    Timer {
        due: time(random),
        entity: workflow(random),
        run_id: text(random),
        kind: random.random_range(0..3),
        event_id: random.random_range(0..300),
    }
}

fn errand(random: &mut Random) -> Errand<String> {
    Errand {
        entity: workflow(random),
        run_id: text(random),
        event_id: random.next_u64(),
        kind: random.random_range(0..3),
    }
}

fn task(random: &mut Random) -> Task<String> {
    Task {
        queue: text(random),
        queue_type: random.random_range(1..3),
        sticky: random.random(),
        version: text(random),
        priority: random.random_range(1..6),
        fairness_key: text(random),
        created: time(random),
        entity: workflow(random),
        run_id: text(random),
        event_id: random.random_range(0..300),
        stamp: random.next_u32(),
    }
}

fn visibility(random: &mut Random) -> Visibility<String> {
    Visibility {
        closed: random.random::<bool>().then(|| time(random)),
        started: time(random),
        run_id: text(random),
        entity: workflow(random),
    }
}

fn expire(random: &mut Random) -> Expire<String> {
    let what = text(random);
    let what = if random.random() { Expires::Run(what) } else { Expires::Request(what) };
    Expire { when: time(random), entity: workflow(random), what }
}

/// Draws many pairs: each key parses back, and two keys sort as their sort tuples do.
fn check<Row: PartialEq + std::fmt::Debug, Sort: Ord + std::fmt::Debug>(
    draw: fn(&mut Random) -> Row,
    key: impl Fn(&Row) -> Bytes,
    parse: fn(&[u8]) -> Option<Row>,
    sort: impl Fn(&Row) -> Sort,
) {
    let random = &mut Random::seed_from_u64(0x70_69_74_6f_6e);
    for _ in 0..20_000 {
        let (a, b) = (draw(random), draw(random));
        assert_eq!(parse(&key(&a)).as_ref(), Some(&a));
        assert_eq!(key(&a).cmp(&key(&b)), sort(&a).cmp(&sort(&b)), "{a:?} and {b:?}");
    }
}

#[test]
fn timers_sort_by_due_time() {
    check(timer, Timer::key, parse_timer, |t| {
        (t.due, t.entity.clone(), t.run_id.clone(), t.kind, t.event_id)
    });
}

#[test]
fn errands_of_a_run_sort_by_event() {
    check(errand, Errand::key, parse_errand, |e| {
        (e.entity.clone(), e.run_id.clone(), e.event_id, e.kind)
    });
}

#[test]
fn tasks_of_a_queue_sort_by_class_and_age() {
    check(task, Task::key, parse_task, |t| {
        let queue = (t.entity.namespace.clone(), t.queue.clone(), t.queue_type, t.sticky);
        let class = (t.version.clone(), t.priority, t.fairness_key.clone());
        let entity = t.entity.clone();
        (queue, class, t.created, entity, t.run_id.clone(), t.event_id, t.stamp)
    });
}

#[test]
fn visibility_shows_open_runs_first_and_the_latest_first() {
    use std::cmp::Reverse;
    check(visibility, Visibility::key, parse_visibility, |v| {
        let namespace = v.entity.namespace.clone();
        let workflow = (v.entity.slot, v.entity.id.clone());
        let run_id = v.run_id.clone();
        (namespace, v.closed.is_some(), Reverse(v.closed), Reverse(v.started), run_id, workflow)
    });
}

#[test]
fn expiries_sort_by_time() {
    check(expire, Expire::key, parse_expire, |e| {
        let what = match &e.what {
            Expires::Request(id) => (false, id.clone()),
            Expires::Run(id) => (true, id.clone()),
        };
        (e.when, e.entity.clone(), what)
    });
}

#[test]
fn entity_rows_parse_back_and_stay_below_their_prefixes() {
    let random = &mut Random::seed_from_u64(7);
    for _ in 0..20_000 {
        let (w, other, run, id) = (workflow(random), workflow(random), text(random), time(random));
        let id = id.cast_unsigned();
        let rows = [
            (w.current(), EntityRow::Current),
            (w.request(&run), EntityRow::Request { request_id: run.clone() }),
            (w.event(&run, id), EntityRow::Event { run_id: run.clone(), first_event_id: id }),
            (w.milestone(&run), EntityRow::Milestone { run_id: run.clone() }),
            (w.note(&run, 3, id), EntityRow::Note { run_id: run.clone(), kind: 3, id }),
        ];
        for (key, row) in rows {
            assert_eq!(parse_entity_row(&key), Some((w.clone(), row)));
            assert!(key.starts_with(&w.prefix()) && key < ENTITIES_END);
            assert_eq!(key.starts_with(&other.prefix()), w == other);
        }
        assert!(w.event(&run, id).starts_with(&w.events(&run)));
        assert!(w.note(&run, 3, id).starts_with(&w.notes(&run)));
        assert!(w.events(&run).starts_with(&w.run(&run)));
    }
}

#[test]
fn a_prefix_holds_its_rows_and_no_others() {
    let random = &mut Random::seed_from_u64(11);
    for _ in 0..20_000 {
        let (a, b, now) = (timer(random), task(random), time(random));
        assert_eq!(a.key() < timers_after(now), a.due <= now);
        assert!(a.key().starts_with(&timers()));
        let queue = text(random);
        let namespace = text(random);
        let same_queue = b.entity.namespace == namespace && b.queue == queue;
        let inside = same_queue && b.queue_type == 1 && !b.sticky;
        assert_eq!(b.key().starts_with(&tasks_of(&namespace, &queue, 1, false)), inside);
        let v = visibility(random);
        let listed = visibility_of(&namespace, EntityKind::Workflow);
        assert_eq!(v.key().starts_with(&listed), v.entity.namespace == namespace);
        let e = expire(random);
        assert_eq!(e.key() < expiries_after(now), e.when <= now);
    }
}

#[test]
fn parsers_refuse_bytes_that_are_no_key() {
    let random = &mut Random::seed_from_u64(13);
    let mut refused = 0;
    for round in 0..100_000 {
        let mut bytes = match round % 5 {
            0 => timer(random).key().to_vec(),
            1 => task(random).key().to_vec(),
            2 => visibility(random).key().to_vec(),
            3 => workflow(random).event("run", 1).to_vec(),
            _ => expire(random).key().to_vec(),
        };
        match random.random_range(0..3) {
            0 => bytes.truncate(random.random_range(0..bytes.len())),
            1 => bytes.push(random.random()),
            _ => {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
        }
        let parsed = [
            parse_timer(&bytes).map(|row| row.key()),
            parse_task(&bytes).map(|row| row.key()),
            parse_visibility(&bytes).map(|row| row.key()),
            parse_expire(&bytes).map(|row| row.key()),
            parse_errand(&bytes).map(|row| row.key()),
        ];
        let row = parse_entity_row(&bytes);
        refused += usize::from(row.is_none() && parsed.iter().all(Option::is_none));
        // What a parser accepts is exactly what the builder would have made.
        for key in parsed.into_iter().flatten() {
            assert_eq!(key, bytes);
        }
    }
    assert!(refused > 50_000, "{refused}");
}

#[test]
fn a_kind_that_is_not_known_is_no_key() {
    let random = &mut Random::seed_from_u64(17);
    let (a, b) = (workflow(random).event("run", 1), timer(random).key());
    for (key, kind_at) in [(a, 2), (b, 11)] {
        let mut key = key.to_vec();
        assert_eq!(key[kind_at], EntityKind::Workflow as u8);
        key[kind_at] += 1;
        assert_eq!(parse_entity_row(&key), None);
        assert_eq!(parse_timer(&key), None);
    }
}

#[test]
fn meta_keys_parse_back() {
    let key = meta::search_attributes("a\0b");
    assert_eq!(meta::parse_search_attributes(&key).as_deref(), Some("a\0b"));
    assert_eq!(meta::parse_search_attributes(&meta::namespace("a")), None);
}
