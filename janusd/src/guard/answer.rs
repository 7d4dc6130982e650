//! How a guard tells whoever gave it something to do how that went.

use std::sync::Arc;

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::SurveyError;

/// Told once how it went, on the guard's own thread: what is told must not block. An answer that is dropped untold says
/// [`SurveyError::Stopped`]: the guard that was to give it is gone.
pub struct Answer(Option<Tell>);

type Tell = Box<dyn FnOnce(Result<(), SurveyError>) + Send>;

impl Answer {
    /// Calls this.
    pub fn new(tell: impl FnOnce(Result<(), SurveyError>) + Send + 'static) -> Answer {
        Answer(Some(Box::new(tell)))
    }

    /// Nobody wants to know.
    pub fn unasked() -> Answer {
        Answer(None)
    }

    /// Two answers for this one: it is told once both went well, or as soon as one has not.
    pub fn halves(self) -> (Answer, Answer) {
        let awaited = Arc::new(Mutex::new((2_u8, Some(self))));
        let half = || {
            let awaited = awaited.clone();
            Answer::new(move |result| {
                let mut awaited = awaited.lock();
                awaited.0 -= 1;
                let whole = if awaited.0 == 0 || result.is_err() { awaited.1.take() } else { None };
                drop(awaited);
                if let Some(whole) = whole {
                    whole.tell(result);
                }
            })
        };
        (half(), half())
    }

    /// This answer, and whatever is to be done once it has been told, or was dropped.
    #[must_use]
    pub fn then(self, next: impl FnOnce() + Send + 'static) -> Answer {
        Answer::new(move |result| {
            self.tell(result);
            next();
        })
    }

    pub(super) fn tell(mut self, result: Result<(), SurveyError>) {
        if let Some(tell) = self.0.take() {
            tell(result);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(Err(SurveyError::Stopped));
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Answer(awaited)" } else { "Answer(unasked)" })
    }
}

/// Gives an answer away, and waits for it.
pub(super) fn wait(give: impl FnOnce(Answer)) -> Result<(), SurveyError> {
    let (tell, told) = bounded(1);
    give(Answer::new(move |result| {
        // Whoever waited has gone; the guard stands as it is.
        let _gone = tell.send(result);
    }));
    told.recv().unwrap_or(Err(SurveyError::Stopped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_untold_is_told_all_the_same() {
        assert!(matches!(wait(drop), Err(SurveyError::Stopped)));
        assert!(matches!(wait(|answer| answer.tell(Err(SurveyError::RootMount))), Err(SurveyError::RootMount)));
        assert!(wait(|answer| answer.tell(Ok(()))).is_ok());
        drop(Answer::unasked());
    }

    #[test]
    fn of_two_halves_both_have_to_go_well() {
        let told = |first: Result<(), SurveyError>, second: Result<(), SurveyError>| {
            wait(|answer| {
                let (one, other) = answer.halves();
                one.tell(first);
                other.tell(second);
            })
        };
        assert!(told(Ok(()), Ok(())).is_ok());
        assert!(matches!(told(Err(SurveyError::RootMount), Ok(())), Err(SurveyError::RootMount)));
        assert!(matches!(told(Ok(()), Err(SurveyError::RootMount)), Err(SurveyError::RootMount)));
        assert!(matches!(wait(|answer| answer.halves().0.tell(Ok(()))), Err(SurveyError::Stopped)));
    }
}
