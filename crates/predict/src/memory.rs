//! The memory that a picture takes, before anything of it is allocated.

use std::fmt;

use burn::tensor::Device;
use halfseg_amp::Precision;
use halfseg_data::{Scale, ratio_size, scaled_size};
use halfseg_devices::{Bytes, available_memory, is_host};
use halfseg_segmentor::{SegmentorConfig, inference_memory};

use crate::config::RATIOS;
use crate::{EvalMode, EvalScale, PredictError, PredictorConfig, PredictorSettings};

/// Width and height in pixels.
type Size = (usize, usize);

/// Bytes of a value of a normalised picture.
const F32: u64 = 4;

/// Bytes of a score.
const SCORE: u64 = F32;

impl PredictorSettings {
    /// Whether the host's memory can hold a picture of `width` and `height` in pixels that `model` is run
    /// with on `device`, as far as can be foreseen: what is refused could not run, and what is not may
    /// still need more.
    ///
    /// # Errors
    /// [`PredictError::Memory`], which says what would fit.
    pub fn check_memory(
        &self,
        model: &SegmentorConfig,
        device: &Device,
        width: usize,
        height: usize,
    ) -> Result<(), PredictError> {
        Plan::new(model, self, device, false).check((width, height))
    }
}

/// What the memory of a picture depends on, besides its size.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub model: &'a SegmentorConfig,
    pub config: &'a PredictorConfig,
    /// Bytes of an element of the network's maps, at least.
    pub element: u64,
    /// Whether the picture is cast to them.
    pub casts: bool,
    /// Whether the network runs in the host's memory.
    pub on_host: bool,
    /// Whether the scores of all pixels are wanted, and not only the most likely class.
    pub scores: bool,
}

impl<'a> Plan<'a> {
    pub fn new(
        model: &'a SegmentorConfig,
        settings: &'a PredictorSettings,
        device: &Device,
        scores: bool,
    ) -> Self {
        let PredictorSettings { policy, config, .. } = settings;
        let is_half = |precision: &Precision| matches!(precision, Precision::F16 | Precision::Bf16);
        let mut exceptions = policy.ops().values().chain(policy.modules().values());
        let casts = is_half(&policy.compute()) && exceptions.clone().all(is_half);
        let half = is_half(&policy.compute()) || exceptions.any(is_half);
        Self {
            model,
            config,
            element: if half { 2 } else { 4 },
            casts,
            on_host: is_host(device),
            scores,
        }
    }

    /// Whether the picture of size `own` needs no scores but those of a band of rows.
    pub fn in_bands(&self, own: Size) -> bool {
        self.takes_as_it_is(own, EvalMode::Slide)
    }

    /// Whether the classes of the picture of size `own` are those of the network's logits for the picture as it is, which
    /// takes no scores of all pixels.
    pub fn decides_at_once(&self, own: Size) -> bool {
        self.takes_as_it_is(own, EvalMode::Whole)
    }

    /// Whether only classes are wanted, of one view in this mode at the picture's own size.
    fn takes_as_it_is(&self, own: Size, mode: EvalMode) -> bool {
        let config = self.config;
        !self.scores && config.mode == mode && !config.ms_flip && fitted(config, own) == own
    }

    /// Refuses a picture of size `own` that the memory of the host cannot hold.
    pub fn check(&self, own: Size) -> Result<(), PredictError> {
        match available_memory() {
            Some(available) => self.check_against(own, available.0),
            None => Ok(()),
        }
    }

    /// Whether memory can hold `count` pictures of size `own` at once, as far as can be foreseen.
    pub fn fits(&self, own: Size, count: usize) -> bool {
        let needed = self.needed(own).saturating_mul(count as u64);
        available_memory().is_none_or(|available| needed <= available.0)
    }

    fn check_against(&self, own: Size, available: u64) -> Result<(), PredictError> {
        let needed = self.needed(own);
        if needed <= available {
            return Ok(());
        }
        Err(PredictError::Memory {
            picture: format!("a picture of {}x{} pixels", own.0, own.1),
            how: How(self.config).to_string(),
            needed: Bytes(needed),
            available: Bytes(available),
            advice: self.advice(own, available),
        })
    }

    /// What would fit.
    fn advice(&self, own: Size, available: u64) -> String {
        let fits = |config: &PredictorConfig| {
            let other = Plan { config, ..*self };
            other.needed(own) <= available
        };
        let mut windows = self.config.clone();
        windows.mode = EvalMode::Slide;
        if self.config.mode == EvalMode::Whole && fits(&windows) {
            return "`--mode slide` takes it in windows, which fit".into();
        }
        let mut plain = windows.clone();
        (plain.ms_flip, plain.scale) = (false, EvalScale::Own);
        if fits(&plain) {
            return "`--mode slide` without `--ms-flip` and at its own size (`--scale own`) fits"
                .into();
        }
        // Quarters of the size, then eighths and so on.
        for parts in [2, 4, 8, 16, 32] {
            let (width, height) = (own.0 / parts, own.1 / parts);
            let mut smaller = self.config.clone();
            smaller.scale = EvalScale::Fit(Scale { width, height });
            if width.min(height) >= 32 && fits(&smaller) {
                return format!("`--scale {width}x{height}` fits");
            }
        }
        "no other way of running it fits: cut it into smaller pictures".into()
    }

    /// Bytes that the picture needs at least, besides itself and the network's weights: what is counted
    /// is in memory at the same time in any case, so that what is refused could not have run.
    pub fn needed(&self, own: Size) -> u64 {
        let fitted = fitted(self.config, own);
        let map = area(own);
        if self.in_bands(own) {
            return map + self.windows(fitted);
        }
        if self.decides_at_once(own) {
            return map.max(self.network(fitted));
        }
        let scores = self.scores_of(own);
        // The scores, the largest of each pixel, and its class.
        let classes = scores + (SCORE + 1) * map;
        if !self.config.ms_flip {
            return classes.max(self.view(own, fitted));
        }
        let views = RATIOS
            .iter()
            .map(|&ratio| self.view(own, ratio_size(fitted, ratio)));
        // Sums over the views before, this view's, and its probabilities.
        let views = views.map(|view| (scores + view).max(3 * scores));
        classes.max(views.max().unwrap_or(0))
    }

    /// Of a view of the picture at `size`, whose logits are resized to `own`.
    fn view(&self, own: Size, size: Size) -> u64 {
        let logits = match self.on_host {
            true => self.scores_of(size),
            false => 0,
        };
        let network = match self.config.mode {
            EvalMode::Whole => self.network(size).max(logits),
            EvalMode::Slide => self.windows(size).max(logits),
        };
        match size == own {
            true => network,
            false => network.max(logits + self.scores_of(own)),
        }
    }

    /// Of windows over a picture of `size`: the network, and the logits of as many rows as a window has.
    fn windows(&self, size: Size) -> u64 {
        let crop = self.config.slide_crop;
        let window = (crop.width.min(size.0), crop.height.min(size.1));
        let strip = match self.on_host {
            true => self.scores_of((size.0, window.1)),
            false => 0,
        };
        strip + self.network(window)
    }

    fn network(&self, size: Size) -> u64 {
        match self.on_host {
            true => {
                // The normalised picture is f32, whatever reads it.
                let channels = self.model.in_channels as u64;
                let values = if self.casts { F32 + self.element } else { F32 };
                let picture = area(size).saturating_mul(values * channels);
                inference_memory(self.model, [size.1, size.0], self.element).max(picture)
            }
            false => 0,
        }
    }

    fn scores_of(&self, size: Size) -> u64 {
        area(size).saturating_mul(SCORE * self.model.num_classes as u64)
    }
}

/// The size that the configuration runs a picture of size `own` at.
pub(crate) fn fitted(config: &PredictorConfig, own: Size) -> Size {
    match config.scale {
        EvalScale::Own => own,
        EvalScale::Fit(scale) => scaled_size(own, (scale.width, scale.height)),
    }
}

fn area(size: Size) -> u64 {
    (size.0 as u64).saturating_mul(size.1 as u64)
}

/// A configuration in words.
struct How<'a>(&'a PredictorConfig);

impl fmt::Display for How<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.0;
        match config.mode {
            EvalMode::Whole => f.write_str("as a whole")?,
            EvalMode::Slide => write!(f, "in windows of {}", config.slide_crop)?,
        }
        match config.scale {
            EvalScale::Own => f.write_str(" at its own size")?,
            EvalScale::Fit(scale) => write!(f, " at a size of at most {scale}")?,
        }
        match config.ms_flip {
            true => f.write_str(", in twelve views"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use halfseg_amp::Policy;
    use halfseg_segmentor::{Depth, Method};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn settings(change: impl FnOnce(&mut PredictorConfig)) -> PredictorSettings {
        let mut config = PredictorConfig::default();
        change(&mut config);
        PredictorSettings::new(Policy::bf16(), config)
    }

    /// What is said of a picture of 20,000 x 20,000 pixels where `available` bytes are.
    fn said(settings: &PredictorSettings, available: u64) -> Option<String> {
        let model = SegmentorConfig::new(Method::Fcn, Depth::R101);
        let plan = Plan::new(&model, settings, &Device::flex(), false);
        let checked = plan.check_against((20_000, 20_000), available);
        checked.err().map(|error| error.to_string())
    }

    fn slide(config: &mut PredictorConfig) {
        config.mode = EvalMode::Slide;
    }

    /// Products with matrices would take 466 GiB to resize its logits.
    #[test]
    fn a_long_and_narrow_picture_takes_what_its_maps_take() {
        let model = SegmentorConfig::new(Method::Fcn, Depth::R18);
        let whole = settings(|_| ());
        let plan = Plan::new(&model, &whole, &Device::flex(), false);
        for size in [(1_000_000, 1), (1, 1_000_000)] {
            let needed = plan.needed(size);
            assert!(
                (1_000_000..GIB).contains(&needed),
                "{size:?} takes {needed}"
            );
        }
    }

    #[test]
    fn a_picture_beyond_memory_is_refused_with_what_would_fit() {
        let refused = |settings: &PredictorSettings, available, expected: &str| {
            let said = said(settings, available).expect("refused");
            let begin = "a picture of 20000x20000 pixels, run ";
            assert!(said.starts_with(begin) && said.contains(expected), "{said}");
        };
        let (whole, windows) = (settings(|_| ()), settings(slide));
        let fits = "`--mode slide` takes it in windows, which fit";
        refused(&whole, 16 * GIB, fits);
        refused(
            &whole,
            3 * GIB,
            "as a whole at its own size, needs at least",
        );
        assert_eq!(said(&windows, 3 * GIB), None);
        refused(&windows, GIB, "in windows of 512x1024 at its own size");
        refused(&windows, GIB, "cut it into smaller pictures");
        let views = settings(|config| config.ms_flip = true);
        refused(&views, 16 * GIB, "in twelve views, needs at least");
        refused(&views, 16 * GIB, "without `--ms-flip` and at its own size");
        // Less than all scores of the picture's own pixels, 28 GiB.
        refused(&whole, 24 * GIB, fits);
        let scaled = settings(|config| {
            config.scale = EvalScale::Fit("2048x2048".parse().unwrap());
        });
        refused(&scaled, 16 * GIB, "at a size of at most 2048x2048");
        assert_eq!(said(&scaled, 64 * GIB), None);
    }

    #[test]
    fn a_smaller_scale_is_proposed_where_it_fits() {
        let model = SegmentorConfig::new(Method::Fcn, Depth::R101);
        let settings = settings(|config| {
            slide(config);
            config.slide_crop = "9000x9000".parse().unwrap();
            config.slide_stride = config.slide_crop;
        });
        let plan = Plan::new(&model, &settings, &Device::flex(), false);
        let error = plan.check_against((8000, 8000), 8 * GIB).unwrap_err();
        assert!(
            error.to_string().ends_with("`--scale 4000x4000` fits"),
            "{error}"
        );
    }

    #[test]
    fn half_precision_takes_half_the_maps_and_a_gpu_only_what_is_read_back() {
        let model = SegmentorConfig::new(Method::PspNet, Depth::R50);
        let size = (2048, 1024);
        let needed = |policy| {
            let settings = PredictorSettings::new(policy, PredictorConfig::default());
            Plan::new(&model, &settings, &Device::flex(), true).needed(size)
        };
        let (single, half) = (needed(Policy::disabled()), needed(Policy::f16()));
        assert!(half < single && single <= 2 * half, "{half} and {single}");
        let settings = settings(|_| ());
        let plan = Plan::new(&model, &settings, &Device::flex(), true);
        let gpu = Plan {
            on_host: false,
            ..plan
        };
        assert_eq!(gpu.needed(size), 2048 * 1024 * (4 * 19 + 5));
    }
}
