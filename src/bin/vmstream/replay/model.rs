//! The models that guests are followed by.

use std::path::Path;
use std::sync::Arc;

use vmstream::error::{Error, Result, errno};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::replay::Policy;
use vmstream::session::Session;

use super::args::{NO_MODEL, ReplayArgs};

/// The model of the command line.
pub fn given(args: &ReplayArgs) -> Result<Option<Arc<Model>>> {
    if args.leave_one_out {
        return Ok(None);
    }
    if args.model != Path::new(NO_MODEL) {
        return Model::load(&args.model).map(|model| Some(Arc::new(model)));
    }
    match args.policy.0 {
        Policy::Planner => Ok(None),
        policy => Err(Error::new(
            errno::EINVAL,
            format!("the policy {} plays back a model: give --model or --leave-one-out", policy.name()),
        )),
    }
}

/// The model of all sessions but one.
pub fn others(args: &ReplayArgs, sessions: &[Session], one: usize) -> Result<Arc<Model>> {
    let mut trainer = Trainer::new(sessions[one].geometry, Limits::default());
    for (number, session) in sessions.iter().enumerate().filter(|(number, _)| *number != one) {
        trainer.add(session).map_err(|e| Error::new(e.errno(), format!("{}: {e}", args.trace[number].display())))?;
    }
    Ok(Arc::new(trainer.finish()))
}
