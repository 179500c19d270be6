use std::time::Duration;

use piton_store::Write;

use super::*;
use crate::replica::tests::TestShard;
use crate::rows::retention;
use crate::rows::tests::Driver;
use crate::rows::workflow;
use piton_core::time::Timestamp;

fn page() -> HistoryPage {
    HistoryPage {
        token: Vec::new(),
        max_events: 0,
        wait: None,
        close_only: false,
        reverse: false,
        held: HeldEvents::Hidden,
    }
}

/// A run with 20 signals in 20 batches behind its first one.
fn long_run() -> Driver {
    let mut driver = Driver::start(TestShard::new(), "w", Timestamp::from_millis(1_000));
    for _ in 0..20 {
        driver.signal();
    }
    driver
}

fn view(driver: &Driver) -> RunView {
    let run = driver.live.as_ref().expect("it was started");
    RunView {
        run_id: run.run_id.clone(),
        next_event_id: run.next_event_id,
        is_open: run.status.is_open(),
        held: run.held.clone(),
        closing: None,
    }
}

fn read(driver: &Driver, page: &HistoryPage) -> Result<PageOutcome, HistoryError> {
    let rows = driver.shard.rows();
    read_page(&rows, &driver.key, &view(driver), page, &Limits::default())
}

fn ids(outcome: Result<PageOutcome, HistoryError>) -> (Vec<i64>, Vec<u8>) {
    match outcome.expect("it reads") {
        PageOutcome::Page(reply) => {
            (reply.events.iter().map(|event| event.event_id).collect(), reply.next_page_token)
        }
        PageOutcome::Wait { .. } => panic!("there is something to read"),
    }
}

/// Reads until the token is empty.
fn read_all(driver: &Driver, mut page: HistoryPage) -> (Vec<i64>, usize) {
    let (mut all, mut pages) = (Vec::new(), 0);
    loop {
        let (events, token) = ids(read(driver, &page));
        all.extend(events);
        pages += 1;
        if token.is_empty() {
            return (all, pages);
        }
        page.token = token;
    }
}

#[test]
fn all_pages_together_are_the_history_in_either_direction() {
    let driver = long_run();
    let last = view(&driver).next_event_id.0 - 1;
    let forward: Vec<i64> = (1..=last).collect();
    let backward: Vec<i64> = (1..=last).rev().collect();
    // The first batch has two events, each of the twenty behind it one.
    for (max_events, pages) in [(0, 1), (1, 21), (5, 5), (1_000, 1)] {
        let page = HistoryPage { max_events, ..page() };
        assert_eq!(read_all(&driver, page.clone()), (forward.clone(), pages));
        let reversed = HistoryPage { reverse: true, ..page };
        assert_eq!(read_all(&driver, reversed), (backward.clone(), pages));
    }
}

#[test]
fn the_first_call_pins_the_end() {
    let mut driver = long_run();
    let (first, token) = ids(read(&driver, &HistoryPage { max_events: 1, ..page() }));
    let end = view(&driver).next_event_id.0;
    driver.signal();
    let (rest, _) = read_all(&driver, HistoryPage { token, ..page() });
    assert_eq!(first.len() as i64 + rest.len() as i64, end - 1);
}

#[test]
fn waiting_goes_on_from_event_to_event_until_the_run_is_closed() {
    let mut driver = long_run();
    let mut page = HistoryPage { wait: Some(Duration::MAX), ..page() };
    let (events, token) = ids(read(&driver, &page));
    assert_eq!(events.len() as i64, view(&driver).next_event_id.0 - 1);
    page.token = token;
    let Ok(PageOutcome::Wait { token }) = read(&driver, &page) else { panic!("nothing is new") };
    page.token = token;
    let next = view(&driver).next_event_id.0;
    driver.signal();
    let (events, token) = ids(read(&driver, &page));
    assert_eq!(events, [next]);
    page.token = token;
    driver.complete();
    let (events, token) = ids(read(&driver, &page));
    assert_eq!(events.last(), Some(&(view(&driver).next_event_id.0 - 1)));
    assert!(token.is_empty(), "a closed run has no more to come");
}

#[test]
fn a_reader_who_pinned_an_open_run_still_gets_its_close() {
    let mut driver = long_run();
    let mut page = HistoryPage { wait: Some(Duration::MAX), max_events: 1, ..page() };
    let (mut all, token) = ids(read(&driver, &page));
    driver.complete();
    page.token = token;
    while !page.token.is_empty() {
        let (events, token) = ids(read(&driver, &page));
        all.extend(events);
        page.token = token;
    }
    assert_eq!(all, (1..view(&driver).next_event_id.0).collect::<Vec<_>>());
}

#[test]
fn the_close_event_is_waited_for_or_absent() {
    let mut driver = long_run();
    let close_only = HistoryPage { close_only: true, ..page() };
    assert_eq!(ids(read(&driver, &close_only)), (vec![], vec![]));
    let mut waiting = HistoryPage { wait: Some(Duration::MAX), ..close_only.clone() };
    let Ok(PageOutcome::Wait { token }) = read(&driver, &waiting) else { panic!("it is open") };
    assert_eq!(token_run(&token).expect("ours"), Some(driver.run_id()));
    waiting.token = token;
    driver.complete();
    let last = view(&driver).next_event_id.0 - 1;
    assert_eq!(ids(read(&driver, &waiting)), (vec![last], vec![]));
    assert_eq!(ids(read(&driver, &close_only)), (vec![last], vec![]));
}

#[test]
fn a_tasks_pages_end_with_its_uncommitted_events() {
    let mut driver = long_run();
    let task = driver.take_task();
    let rows = driver.shard.rows();
    let limits = Limits { history_page_events_max: 4, ..Limits::default() };
    let range = task.history_from..task.history_end;
    let run_id = driver.run_id();
    let recent = RecentHistory::default();
    let first = task_page(&rows, &recent, &driver.key, &run_id, range, &task.suffix, &limits);
    let (events, mut token) = first.expect("it reads");
    let mut all: Vec<_> = events.iter().map(|event| event.event_id).collect();
    assert!(!token.is_empty(), "a long history has more than one page");
    // The worker goes on reading; meanwhile more may be committed.
    driver.signal();
    while !token.is_empty() {
        let page = HistoryPage { token, ..page() };
        let (events, next) = ids(read_page(&rows, &driver.key, &view(&driver), &page, &limits));
        all.extend(events);
        token = next;
    }
    let last = task.suffix.last().expect("Started is not committed").event_id;
    assert_eq!(all, (1..=last).collect::<Vec<_>>());
}

#[test]
fn tokens_of_others_are_refused() {
    let driver = long_run();
    let (_, token) = ids(read(&driver, &HistoryPage { max_events: 1, ..page() }));
    let reversed = HistoryPage { token: token.clone(), reverse: true, ..page() };
    assert!(matches!(read(&driver, &reversed), Err(HistoryError::Token(_))));
    let garbage = HistoryPage { token: b"garbage".to_vec(), ..page() };
    assert!(matches!(read(&driver, &garbage), Err(HistoryError::Token(_))));
    let mut other = view(&driver);
    other.run_id = RunId::from("other");
    let page = HistoryPage { token, ..page() };
    let rows = driver.shard.rows();
    let answer = read_page(&rows, &driver.key, &other, &page, &Limits::default());
    assert!(matches!(answer, Err(HistoryError::Token(_))));
}

/// Goal: a client's token is either one of ours, or refused as such: it is neither damage of the
/// store's rows nor a reason to panic.
#[test]
fn a_page_token_of_a_clients_own_making_is_refused_as_such() {
    let driver = long_run();
    let run = view(&driver);
    let token = |next: i64, end: i64, reverse: bool| PageToken {
        run_id: run.run_id.clone(),
        reverse,
        next: EventId(next),
        end: EventId(end),
        suffix: Vec::new(),
    };
    let last = run.next_event_id.0 - 1;
    for (next, end, reverse) in [
        (0, last, false),
        (last + 2, last + 2, false),
        (last, last + 2, false),
        (last, last - 1, false),
        (i64::MAX, i64::MAX, false),
        (1, i64::MAX, false),
        (0, 0, true),
        (last + 1, 0, true),
        (i64::MAX, 0, true),
        (i64::MIN, 0, true),
    ] {
        for wait in [false, true] {
            let token = token(next, end, reverse).encode();
            let page =
                HistoryPage { token, wait: wait.then_some(Duration::MAX), reverse, ..page() };
            let outcome = read(&driver, &page);
            assert!(
                matches!(outcome, Err(HistoryError::Token(_))),
                "{next}..{end}, reverse {reverse}, wait {wait}"
            );
        }
    }
    let held = |run: &mut dyn FnMut()| allocation_counter::measure(run).bytes_max;
    let samples = [(1, last + 1, false), (5, 9, false), (last, 0, true)];
    let samples = samples.map(|(next, end, reverse)| token(next, end, reverse).encode());
    piton_store::fuzzing::attack("a page token", samples.to_vec(), held, |bytes| {
        for (wait, reverse) in [(false, false), (true, false), (false, true)] {
            let page = HistoryPage {
                token: bytes.to_vec(),
                wait: wait.then_some(Duration::MAX),
                reverse,
                max_events: 2,
                ..page()
            };
            let outcome = read(&driver, &page);
            assert!(matches!(outcome, Ok(_) | Err(HistoryError::Token(_))));
        }
    });
}

/// Goal: whoever reads on in a run that is being deleted hears that there is no such run.
#[test]
fn a_run_that_is_deleted_between_two_pages_is_gone_and_not_damaged() {
    for reverse in [false, true] {
        let mut driver = long_run();
        driver.complete();
        let before = view(&driver);
        let first = HistoryPage { max_events: 5, reverse, ..page() };
        let (_, token) = ids(read(&driver, &first));
        let expired = retention::expired(&driver.shard.rows(), Timestamp::MAX, 1);
        let expired = expired.expect("it reads").pop().expect("a closed run expires");
        let mut done = false;
        while !done {
            let rows = driver.shard.rows();
            let deletion = retention::deletion_writes(&rows, &expired, 8).expect("it reads");
            done = deletion.done;
            driver.put(deletion.writes);
        }
        for token in [Vec::new(), token] {
            let asked = HistoryPage { token, ..first.clone() };
            let rows = driver.shard.rows();
            let read = read_page(&rows, &driver.key, &before, &asked, &Limits::default());
            assert!(
                matches!(&read, Err(HistoryError::Gone { run_id, .. }) if *run_id == before.run_id)
            );
        }
    }
}

#[test]
fn a_run_that_lacks_an_event_is_damaged_and_not_gone() {
    let mut driver = long_run();
    driver.complete();
    let last = view(&driver).next_event_id;
    let lost = workflow(&driver.key).event(driver.run_id().as_str(), 7);
    driver.put(vec![Write::delete(lost)]);
    let page = HistoryPage { token: token_at(&driver, EventId(7), last), ..page() };
    let read = read(&driver, &page);
    assert!(matches!(read, Err(HistoryError::Load(LoadError::Missing { .. }))), "{read:?}");
}

/// As a page that ended before `next`.
fn token_at(driver: &Driver, next: EventId, end: EventId) -> Vec<u8> {
    let run_id = driver.run_id();
    PageToken { run_id, reverse: false, next, end, suffix: Vec::new() }.encode()
}
