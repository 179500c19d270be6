//! Groups as the shard crate sees them: alone, and three of them connected in memory.

mod cluster;
mod damage;
mod hand_over;
mod held;
mod leave;
mod members;
mod single;
mod speed;
mod support;
mod transfer;
