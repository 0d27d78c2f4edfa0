//! The steps of a run, and what is written between them.

use std::time::{Duration, Instant};

use mdm::{Control, Error};
use mdm_train::pretrain::{PretrainError, StepReport, Trainer};
use mdm_train::ranks::Ranks;

use crate::error::{CliError, Result, failed, warn};
use crate::files::write_file;
use crate::interruption::interruption;
use crate::output::quoted;
use crate::progress::TrainingProgress;
use crate::training::{Events, Interval, Line, Log, RunFolder, Sheet, Watching};

/// What is written of a run.
struct Records<'a> {
    folder: &'a RunFolder,
    log: Log,
    events: Events,
    progress: TrainingProgress,
}

/// A run that is under way.
pub(super) struct Run<'a> {
    watching: Watching,
    ranks: &'a dyn Ranks,
    trainer: &'a mut Trainer,
    /// The first process keeps them for all.
    records: Option<Records<'a>>,
    /// Step of the checkpoint in the folder.
    saved: Option<u64>,
    saved_at: Instant,
    speed: f64,
    time: Duration,
    waited: Duration,
    steps: u64,
    left_out: usize,
}

pub(super) struct Outcome {
    pub(super) interrupted: bool,
    pub(super) images_per_second: f64,
    pub(super) waited: f64,
    pub(super) left_out: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        watching: Watching,
        resumed: bool,
        ranks: &'a dyn Ranks,
        folder: Option<&'a RunFolder>,
        trainer: &'a mut Trainer,
    ) -> Result<Self> {
        let done = trainer.steps_done();
        let records = |folder: &'a RunFolder| -> Result<Records<'a>> {
            Ok(Records {
                log: Log::open(folder.path(), done)?,
                events: Events::create(folder.path(), done)?,
                progress: TrainingProgress::new(done, trainer.recipe().steps),
                folder,
            })
        };
        Ok(Self {
            records: folder.map(records).transpose()?,
            saved: resumed.then_some(done),
            saved_at: Instant::now(),
            speed: 0.0,
            time: Duration::ZERO,
            waited: Duration::ZERO,
            steps: 0,
            left_out: 0,
            watching,
            ranks,
            trainer,
        })
    }

    /// Runs all steps, or up to an interruption. Whatever ends it, the folder has a good checkpoint afterwards, if it ever had
    /// one.
    pub(super) fn all_steps(mut self) -> Result<Outcome> {
        let token = interruption("saving");
        let ended = self.steps(&Control::none().with_cancel(&token));
        self.tell_left_out();
        if let Some(records) = &self.records {
            records.progress.finish();
        }
        let interrupted = match ended {
            Ok(()) => false,
            Err(CliError::Library(Error::Cancelled)) => true,
            Err(error) => return Err(self.failed(error)),
        };
        if self.saved != Some(self.trainer.steps_done())
            && let Err(error) = self.save()
        {
            return Err(self.failed(error));
        }
        let seconds = self.time.as_secs_f64().max(1e-9);
        Ok(Outcome {
            interrupted,
            images_per_second: self.steps as f64 * self.trainer.recipe().batch as f64 / seconds,
            waited: self.waited.as_secs_f64() / seconds,
            left_out: self.left_out,
        })
    }

    fn steps(&mut self, control: &Control<'_>) -> Result<()> {
        let steps = self.trainer.recipe().steps;
        let samples_every = self.watching.samples_every(steps);
        while !self.trainer.finished() {
            let report = self.trainer.step_among(self.ranks, control)?;
            self.tell_left_out();
            self.record(&report)?;
            if samples_every > 0 && (report.step % samples_every == 0 || report.step == steps) {
                self.draw(report.step, control)?;
            }
            let due = match self.watching.save_every() {
                Interval::Steps(steps) => report.step % steps == 0,
                Interval::Time(time) => self.saved_at.elapsed() >= time,
            };
            if due {
                self.save()?;
            }
        }
        Ok(())
    }

    fn record(&mut self, report: &StepReport) -> Result<()> {
        let batch = self.trainer.recipe().batch as f64;
        let seconds = report.time.as_secs_f64().max(1e-9);
        self.time += report.time;
        self.waited += report.waited;
        self.steps += 1;
        let images_per_second = batch / seconds;
        let weight = 1.0 / (self.steps as f64).min(20.0);
        self.speed += weight * (images_per_second - self.speed);
        let Some(records) = &mut self.records else { return Ok(()) };
        records.log.write(&Line {
            step: report.step,
            loss: report.loss,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            images_per_second,
            seconds: self.trainer.seconds(),
            waited: report.waited.as_secs_f64(),
            applied: report.applied,
        })?;
        records.events.scalars(
            report.step,
            &[
                ("loss", report.loss),
                ("gradient norm", report.gradient_norm),
                ("learning rate", report.learning_rate),
                ("images per second", images_per_second),
                ("part of time waited for images", report.waited.as_secs_f64() / seconds),
            ],
        )?;
        let loss = self.trainer.mean_loss().unwrap_or(report.loss);
        let message = format!("loss {loss:.4}, {:.1} images/s", self.speed);
        records.progress.report(report.step, self.trainer.recipe().steps, message);
        Ok(())
    }

    fn draw(&mut self, step: u64, control: &Control<'_>) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let examples = self.trainer.examples(self.watching.samples(), control)?;
        let recipe = self.trainer.recipe();
        let sheet = Sheet::new(&examples, recipe.size(), recipe.unet.in_channels)?;
        let folder = records.folder.path().join("samples");
        std::fs::create_dir_all(&folder)
            .map_err(|error| failed(&folder, format!("cannot be created: {error}")))?;
        write_file(&folder.join(format!("step-{step:08}.png")), &sheet.png)?;
        records.events.image(step, "samples", (sheet.width, sheet.height), &sheet.png)
    }

    fn save(&mut self) -> Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        self.trainer.save(&records.folder.checkpoint())?;
        self.saved = Some(self.trainer.steps_done());
        self.saved_at = Instant::now();
        Ok(())
    }

    fn tell_left_out(&mut self) {
        for (name, reason) in self.trainer.left_out() {
            self.left_out += 1;
            let reason = if reason.contains(&name) { reason } else { format!("{name}: {reason}") };
            let say = || warn(format!("left out: {reason}"));
            match &self.records {
                Some(records) => records.progress.suspend(say),
                None => say(),
            }
        }
    }

    /// Says what is left of the run that `error` ended.
    fn failed(&self, error: CliError) -> CliError {
        let Some(records) = &self.records else { return error };
        let hint = match (&error, self.saved) {
            (CliError::Library(Error::Invalid { .. } | Error::Device(_)), _) => return error,
            (_, None) => "no checkpoint was written yet".to_owned(),
            (_, Some(step)) => format!(
                "the checkpoint of step {step} is intact: go on with `mdm pretrain --resume {}`",
                quoted(records.folder.path())
            ),
        };
        match error {
            CliError::Pretrain(PretrainError::Diverged { .. }) | CliError::File(_) | CliError::Library(_) => {
                CliError::Failed(format!("{error}\n{hint}"))
            }
            CliError::Failed(reason) => CliError::Failed(format!("{reason}\n{hint}")),
            other => other,
        }
    }
}
