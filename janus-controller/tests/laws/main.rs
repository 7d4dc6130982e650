//! The controller from inside: what the index, the plan and the status say, by laws and vectors, and how driver and hub
//! behave, by a clock that tests wind.
//!
//! | module | of |
//! |---|---|
//! | `index` | what watches fold into, against a naive model, whatever way it came |
//! | `plan` | one daemon's plan, against a model daemon |
//! | `status` | each line of the contract about the status |
//! | `driver` | one node, with a scripted daemon |
//! | `hub` | all of it, with scripted watches, daemons and API server |
//! | `objects` | guards and pods as the API server sends them |
//! | `cluster` | an API server that tells watches, and notes what is written |
//! | `script` | daemons that do as they are told, and note what they were told |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod driver;
mod hub;
mod index;
mod objects;
mod plan;
mod script;
mod status;
