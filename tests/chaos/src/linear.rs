//! What one workflow id is to its clients, as a sequential object; whether operations that overlapped
//! are explained by some order of it is for `stateright`'s tester to find.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// Each operation of unknown outcome may stand anywhere or nowhere; beyond so many the search is too
/// long.
const UNKNOWN_MAX: usize = 6;
/// More than there are clients: what numbers the second half of a read.
const APART: u32 = 1 << 16;
const SEARCH_MAX: Duration = Duration::from_secs(10);

/// What happens to a run that is open when another is to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Conflict {
    Fail,
    UseExisting,
    TerminateExisting,
}

/// Starts and signals bear numbers of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Start {
        number: u32,
        only_first: bool,
        conflict: Conflict,
    },
    Signal(u32),
    Terminate,
    /// The current run's history. It is looked up which run that is, and then its history is read;
    /// between the two the run may end and another one begin.
    Read,
    /// The two parts of it.
    Current,
    ReadRun(u32),
    /// All runs of the workflow id.
    List,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ret {
    /// The run that this start began.
    Started(u32),
    AlreadyStarted,
    Done,
    NotFound,
    Current(u32),
    Shown(RunState),
    /// By the number of its start: whether each run is open.
    Listed(Vec<(u32, bool)>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RunState {
    pub(crate) start: u32,
    pub(crate) is_open: bool,
    pub(crate) signals: Vec<u32>,
}

/// All runs of a workflow id, in order. At most the last one is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workflow {
    runs: Vec<RunState>,
}

impl Workflow {
    fn open(&mut self) -> Option<&mut RunState> {
        self.runs.last_mut().filter(|run| run.is_open)
    }

    fn start(&mut self, number: u32, only_first: bool, conflict: Conflict) -> Ret {
        if let Some(open) = self.open() {
            match conflict {
                Conflict::UseExisting => return Ret::Started(open.start),
                Conflict::Fail => return Ret::AlreadyStarted,
                Conflict::TerminateExisting => open.is_open = false,
            }
        } else if only_first && !self.runs.is_empty() {
            return Ret::AlreadyStarted;
        }
        self.runs.push(RunState { start: number, is_open: true, signals: Vec::new() });
        Ret::Started(number)
    }
}

impl SequentialSpec for Workflow {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match op {
            Op::Start { number, only_first, conflict } => {
                self.start(*number, *only_first, *conflict)
            }
            Op::Signal(number) => match self.open() {
                Some(run) => {
                    run.signals.push(*number);
                    Ret::Done
                }
                None => Ret::NotFound,
            },
            Op::Terminate => match self.open() {
                Some(run) => {
                    run.is_open = false;
                    Ret::Done
                }
                None => Ret::NotFound,
            },
            Op::Read => self.runs.last().map_or(Ret::NotFound, |run| Ret::Shown(run.clone())),
            Op::Current => self.runs.last().map_or(Ret::NotFound, |run| Ret::Current(run.start)),
            Op::ReadRun(start) => {
                let run = self.runs.iter().find(|run| run.start == *start);
                run.map_or(Ret::NotFound, |run| Ret::Shown(run.clone()))
            }
            Op::List => {
                let mut runs: Vec<_> = self.runs.iter().map(|r| (r.start, r.is_open)).collect();
                runs.sort_unstable();
                Ret::Listed(runs)
            }
        }
    }
}

/// What a client did or saw, in the order of one clock. Who has no answer to an operation does
/// nothing more.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Invoked(u32, Op),
    Returned(u32, Ret),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    NotLinearizable,
    Undecided,
}

/// Takes reads apart, and leaves out what was only looked at without an answer.
fn expand(steps: &[Step]) -> Vec<Step> {
    let mut expanded = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let Step::Invoked(client, op) = step else { continue };
        let returned = steps[at..].iter().enumerate().find_map(|(after, step)| match step {
            Step::Returned(of, ret) if of == client => Some((at + after, ret)),
            _ => None,
        });
        match (op, returned) {
            (Op::Read | Op::List, None) => {}
            (Op::Read, Some((end, Ret::Shown(run)))) => {
                let other = client + APART;
                expanded.push((at, Step::Invoked(*client, Op::Current)));
                expanded.push((at, Step::Invoked(other, Op::ReadRun(run.start))));
                expanded.push((end, Step::Returned(*client, Ret::Current(run.start))));
                expanded.push((end, Step::Returned(other, Ret::Shown(run.clone()))));
            }
            (_, returned) => {
                expanded.push((at, step.clone()));
                expanded
                    .extend(returned.map(|(end, ret)| (end, Step::Returned(*client, ret.clone()))));
            }
        }
    }
    expanded.sort_by_key(|(at, _)| *at);
    expanded.into_iter().map(|(_, step)| step).collect()
}

/// Whether there is an order that explains all answers.
pub(crate) fn check(steps: &[Step]) -> Verdict {
    let steps = expand(steps);
    let invoked = steps.iter().filter(|step| matches!(step, Step::Invoked(..))).count();
    if 2 * invoked - steps.len() > UNKNOWN_MAX {
        return Verdict::Undecided;
    }
    let mut tester = LinearizabilityTester::new(Workflow::default());
    for step in steps {
        let recorded = match step {
            Step::Invoked(client, op) => tester.on_invoke(client, op),
            Step::Returned(client, ret) => tester.on_return(client, ret),
        };
        if recorded.is_err() {
            return Verdict::Undecided;
        }
    }
    let (tx, rx) = channel();
    // A search cannot be stopped, so it is left alone when it takes too long.
    std::thread::spawn(move || tx.send(tester.is_consistent()));
    match rx.recv_timeout(SEARCH_MAX) {
        Ok(true) => Verdict::Linearizable,
        Ok(false) => Verdict::NotLinearizable,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Verdict::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Op = Op::Start { number: 1, only_first: false, conflict: Conflict::Fail };

    fn shown(signals: &[u32]) -> Ret {
        Ret::Shown(RunState { start: 1, is_open: true, signals: signals.to_vec() })
    }

    #[test]
    fn what_was_acknowledged_must_be_seen() {
        let steps = |seen| {
            vec![
                Step::Invoked(0, START),
                Step::Returned(0, Ret::Started(1)),
                Step::Invoked(1, Op::Signal(7)),
                Step::Returned(1, Ret::Done),
                Step::Invoked(0, Op::Read),
                Step::Returned(0, seen),
            ]
        };
        assert_eq!(check(&steps(shown(&[7]))), Verdict::Linearizable);
        assert_eq!(check(&steps(shown(&[]))), Verdict::NotLinearizable);
    }

    #[test]
    fn what_has_no_answer_may_show_or_not_but_not_vanish_again() {
        let begin = [
            Step::Invoked(0, START),
            Step::Returned(0, Ret::Started(1)),
            Step::Invoked(1, Op::Signal(7)),
        ];
        let read = |seen: Ret| [Step::Invoked(0, Op::Read), Step::Returned(0, seen)];
        let with = |reads: &[Ret]| {
            let reads = reads.iter().cloned().flat_map(read);
            check(&begin.iter().cloned().chain(reads).collect::<Vec<_>>())
        };
        assert_eq!(with(&[shown(&[]), shown(&[])]), Verdict::Linearizable);
        assert_eq!(with(&[shown(&[]), shown(&[7])]), Verdict::Linearizable);
        assert_eq!(with(&[shown(&[7]), shown(&[])]), Verdict::NotLinearizable);
    }

    #[test]
    fn a_read_may_show_the_end_of_the_run_that_was_current_when_it_began() {
        let replace =
            Op::Start { number: 2, only_first: false, conflict: Conflict::TerminateExisting };
        let ended = Ret::Shown(RunState { start: 1, is_open: false, signals: Vec::new() });
        let start = [Step::Invoked(0, START), Step::Returned(0, Ret::Started(1))];
        let read = Step::Invoked(1, Op::Read);
        let replaced = [Step::Invoked(0, replace), Step::Returned(0, Ret::Started(2))];
        let shown = Step::Returned(1, ended);
        let overlapping: Vec<_> =
            start.iter().chain([&read]).chain(&replaced).chain([&shown]).cloned().collect();
        let after: Vec<_> = start.iter().chain(&replaced).chain([&read, &shown]).cloned().collect();
        assert_eq!(check(&overlapping), Verdict::Linearizable);
        assert_eq!(check(&after), Verdict::NotLinearizable);
    }

    #[test]
    fn policies_are_kept() {
        let first = Op::Start { number: 2, only_first: true, conflict: Conflict::Fail };
        let mut workflow = Workflow::default();
        assert_eq!(workflow.invoke(&START), Ret::Started(1));
        assert_eq!(workflow.invoke(&START), Ret::AlreadyStarted);
        assert_eq!(workflow.invoke(&Op::Terminate), Ret::Done);
        assert_eq!(workflow.invoke(&first), Ret::AlreadyStarted);
        assert_eq!(workflow.invoke(&Op::List), Ret::Listed(vec![(1, false)]));
        assert_eq!(workflow.invoke(&Op::Signal(1)), Ret::NotFound);
    }
}
