//! Concurrent callers share confirmations: those who come while one is under way share the next.
//!
//! Owns who waits for which round. It never asks what a round confirms.

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Callers that wait for rounds, each of which answers a `T`.
pub struct Rounds<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Those who wait for a round that has not begun.
    waiting: Vec<oneshot::Sender<T>>,
    /// Rounds are under way: when one ends, the next begins for those who wait.
    running: bool,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { waiting: Vec::new(), running: false }) }
    }
}

/// A caller that waits for the next round.
pub struct Joined<T> {
    /// What that round answers.
    pub answer: oneshot::Receiver<T>,
    /// Nobody runs the rounds: the caller has to see to it.
    pub is_first: bool,
}

impl<T: Clone> Rounds<T> {
    /// Waits for a round that begins after now.
    pub fn join(&self) -> Joined<T> {
        let (tx, answer) = oneshot::channel();
        let mut state = self.state.lock();
        state.waiting.push(tx);
        Joined { answer, is_first: !std::mem::replace(&mut state.running, true) }
    }

    /// Serves those who wait, one round after the other, until nobody waits.
    pub async fn run<F: Future<Output = T>>(&self, round: impl Fn() -> F) {
        // ORDER: those who wait are taken before the round begins. Who comes later may ask for an
        // entry that was committed after the round's index was drawn.
        while let Some(served) = self.take() {
            let answer = round().await;
            for waiting in served {
                // Who has gone away needs no answer.
                let _ = waiting.send(answer.clone());
            }
        }
    }

    fn take(&self) -> Option<Vec<oneshot::Sender<T>>> {
        let mut state = self.state.lock();
        state.running = !state.waiting.is_empty();
        state.running.then(|| std::mem::take(&mut state.waiting))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[tokio::test]
    async fn who_comes_during_a_round_is_answered_by_the_next() {
        let rounds = Arc::new(Rounds::default());
        let (begun, mut has_begun) = unbounded_channel();
        let (answers, to_give) = unbounded_channel();
        let to_give = Arc::new(tokio::sync::Mutex::new(to_give));

        let first = rounds.join();
        assert!(first.is_first);
        let runs = tokio::spawn({
            let rounds = Arc::clone(&rounds);
            let round = move || {
                begun.send(()).unwrap();
                let to_give = Arc::clone(&to_give);
                async move { to_give.lock().await.recv().await.unwrap() }
            };
            async move { rounds.run(round).await }
        });
        has_begun.recv().await.unwrap();
        let late = [rounds.join(), rounds.join()];
        assert!(late.iter().all(|joined| !joined.is_first));
        for answer in [1, 2] {
            answers.send(answer).unwrap();
        }
        assert_eq!(first.answer.await.unwrap(), 1);
        for joined in late {
            assert_eq!(joined.answer.await.unwrap(), 2, "its round began before it came");
        }
        runs.await.unwrap();
        assert!(rounds.join().is_first, "nobody runs the rounds any more");
    }
}
