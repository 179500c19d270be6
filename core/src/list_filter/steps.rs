//! A filter's condition on its way to another node: what it is made of, in the order in which it can be
//! put together again. Nested as it is, bytes that claim to be one could exhaust the stack.

use serde::{Deserialize, Serialize};

use super::{Condition, DEPTH_MAX, Literal, Operator};
use crate::search_attribute::Field;

/// No filter is nested deeper: in each pair of parentheses there is an OR, and in it an AND.
const NESTED_MAX: usize = 2 * (DEPTH_MAX + 1) + 1;

/// A comparison, or what joins those before it.
#[derive(Serialize, Deserialize)]
pub(super) enum Step {
    /// Joins so many of the conditions before it, and stands for them.
    All(usize),
    Any(usize),
    Compare(Field, Operator, Literal),
    In(Field, Vec<Literal>),
    Between(Field, Literal, Literal),
    StartsWith(Field, String, bool),
}

impl From<Condition> for Vec<Step> {
    fn from(condition: Condition) -> Self {
        let mut steps = Vec::new();
        put(condition, &mut steps);
        steps
    }
}

fn put(condition: Condition, steps: &mut Vec<Step>) {
    let mut join = |conditions: Vec<Condition>, joined: fn(usize) -> Step| {
        let count = conditions.len();
        for condition in conditions {
            put(condition, steps);
        }
        steps.push(joined(count));
    };
    match condition {
        Condition::All(conditions) => join(conditions, Step::All),
        Condition::Any(conditions) => join(conditions, Step::Any),
        Condition::Compare(field, operator, literal) => {
            steps.push(Step::Compare(field, operator, literal));
        }
        Condition::In(field, literals) => steps.push(Step::In(field, literals)),
        Condition::Between(field, low, high) => steps.push(Step::Between(field, low, high)),
        Condition::StartsWith(field, text, begins) => {
            steps.push(Step::StartsWith(field, text, begins));
        }
    }
}

/// Steps that no filter is made of.
#[derive(Debug, thiserror::Error)]
#[error("the steps of a filter do not fit together")]
pub(super) struct Misfit;

impl TryFrom<Vec<Step>> for Condition {
    type Error = Misfit;

    fn try_from(steps: Vec<Step>) -> Result<Self, Misfit> {
        // Each with how deep it is nested.
        let mut put_together: Vec<(Condition, usize)> = Vec::new();
        let join = |put_together: &mut Vec<(Condition, usize)>, count: usize| {
            let first = put_together.len().checked_sub(count).ok_or(Misfit)?;
            let joined = put_together.split_off(first);
            let depth = 1 + joined.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
            if depth > NESTED_MAX {
                return Err(Misfit);
            }
            Ok((joined.into_iter().map(|(condition, _)| condition).collect(), depth))
        };
        for step in steps {
            let next = match step {
                Step::All(count) => {
                    let (conditions, depth) = join(&mut put_together, count)?;
                    (Condition::All(conditions), depth)
                }
                Step::Any(count) => {
                    let (conditions, depth) = join(&mut put_together, count)?;
                    (Condition::Any(conditions), depth)
                }
                Step::Compare(field, operator, literal) => {
                    (Condition::Compare(field, operator, literal), 0)
                }
                Step::In(field, literals) => (Condition::In(field, literals), 0),
                Step::Between(field, low, high) => (Condition::Between(field, low, high), 0),
                Step::StartsWith(field, text, begins) => {
                    (Condition::StartsWith(field, text, begins), 0)
                }
            };
            put_together.push(next);
        }
        match put_together.pop() {
            Some((condition, _)) if put_together.is_empty() => Ok(condition),
            _ => Err(Misfit),
        }
    }
}
