//! How a guard tells whoever gave it something to do how that went.

use crossbeam_channel::bounded;

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
}
