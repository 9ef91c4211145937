//! The models that guests are followed by.

use std::path::Path;
use std::sync::Arc;

use vmstream::error::{Error, Result, errno};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::replay::Policy;
use vmstream::session::Session;

use super::args::{NO_MODEL, ReplayArgs};
use crate::traces;

/// What each guest is followed by.
pub struct Models<'a> {
    args: &'a ReplayArgs,
    /// The sessions that are replayed.
    sessions: &'a [Session],
    /// Those that are learnt besides.
    also: Vec<Session>,
    /// The model of the command line.
    given: Option<Arc<Model>>,
}

impl<'a> Models<'a> {
    /// Reads what the command line names.
    pub fn new(args: &'a ReplayArgs, sessions: &'a [Session]) -> Result<Self> {
        let given = if args.policy.0.needs_model() { given(args)? } else { None };
        if let Some(model) = &given
            && let Some(at) = sessions.iter().position(|session| session.geometry != model.geometry())
        {
            let (model, trace) = (args.model.display(), args.trace[at].display());
            return Err(Error::new(errno::EINVAL, format!("{model} is a model of another image than that of {trace}")));
        }
        let also = args.also_learn.iter().map(|path| traces::read(path)).collect::<Result<Vec<_>>>()?;
        Ok(Self { args, sessions, also, given })
    }

    /// The model for the replay of this session.
    pub fn of(&self, number: usize) -> Result<Option<Arc<Model>>> {
        if self.args.leave_one_out && self.args.policy.0.needs_model() {
            return self.others(number).map(Some);
        }
        Ok(self.given.clone())
    }

    /// The model of all sessions but one.
    fn others(&self, one: usize) -> Result<Arc<Model>> {
        let Self { args, sessions, also, .. } = self;
        let limits = Limits { paths_max: args.remember as usize, ..Limits::default() };
        let mut trainer = Trainer::new(sessions[one].geometry, limits);
        let others = args.trace.iter().zip(*sessions).enumerate().filter(|(number, _)| *number != one);
        for (path, session) in args.also_learn.iter().zip(also).chain(others.map(|(_, other)| other)) {
            trainer.add(session).map_err(|e| Error::new(e.errno(), format!("{}: {e}", path.display())))?;
        }
        Ok(Arc::new(trainer.finish()))
    }
}

/// The model of the command line.
fn given(args: &ReplayArgs) -> Result<Option<Arc<Model>>> {
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
