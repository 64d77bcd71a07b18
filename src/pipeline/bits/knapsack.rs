//! One way for each of many things, of several that cost bytes and harm: the least harm within so many bytes, or the fewest bytes
//! for so much harm. Ways on the lower convex hull of a thing are taken in the order of what a byte saves (Everett, 1963), which
//! is the best that can be had for the bytes that it comes to; what is left over is filled up greedily.

/// A way to store a thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// What it takes.
    pub bytes: u64,
    /// What it harms.
    pub harm: f64,
}

/// The bytes and the harm of a choice: the index of a way for each thing.
pub fn total(things: &[Vec<Cost>], choice: &[usize]) -> Cost {
    let of = |(ways, way): (&Vec<Cost>, &usize)| ways[*way];
    things
        .iter()
        .zip(choice)
        .map(of)
        .fold(Cost { bytes: 0, harm: 0.0 }, |sum, way| Cost { bytes: sum.bytes + way.bytes, harm: sum.harm + way.harm })
}

/// The smallest way of each thing; of equally small ones the least harmful.
pub fn smallest(things: &[Vec<Cost>]) -> Vec<usize> {
    let least = |ways: &Vec<Cost>| {
        let order =
            |a: &usize, b: &usize| ways[*a].bytes.cmp(&ways[*b].bytes).then(ways[*a].harm.total_cmp(&ways[*b].harm));
        (0..ways.len()).min_by(order).unwrap_or(0)
    };
    things.iter().map(least).collect()
}

/// The choice of the least harm that is found within so many bytes; the smallest one if there is none.
pub fn within(things: &[Vec<Cost>], bytes: u64) -> Vec<usize> {
    let mut choice = smallest(things);
    let mut used = total(things, &choice).bytes;
    for Step { thing, way } in steps(things) {
        let more = things[thing][way].bytes - things[thing][choice[thing]].bytes;
        if used + more <= bytes {
            used += more;
            choice[thing] = way;
        } else {
            break;
        }
    }
    // What is left over: the step that saves the most a byte, of those that fit, as long as one does.
    loop {
        let mut best: Option<(f64, usize, usize, u64)> = None;
        for (thing, ways) in things.iter().enumerate() {
            let now = ways[choice[thing]];
            for (way, cost) in ways.iter().enumerate() {
                let more = cost.bytes.saturating_sub(now.bytes);
                let saved = now.harm - cost.harm;
                if cost.bytes < now.bytes || saved <= 0.0 || used + more > bytes {
                    continue;
                }
                let rate = saved / more.max(1) as f64;
                if best.is_none_or(|(most, ..)| rate > most) {
                    best = Some((rate, thing, way, more));
                }
            }
        }
        let Some((_, thing, way, more)) = best else { return choice };
        used += more;
        choice[thing] = way;
    }
}

/// The choice of the fewest bytes that is found for so much harm; the least harmful one if there is none.
pub fn for_harm(things: &[Vec<Cost>], harm: f64) -> Vec<usize> {
    let mut choice = smallest(things);
    let mut left = total(things, &choice).harm;
    for Step { thing, way } in steps(things) {
        if left <= harm {
            break;
        }
        left += things[thing][way].harm - things[thing][choice[thing]].harm;
        choice[thing] = way;
    }
    // What was taken in larger steps than was needed: the step back that frees the most bytes, as long as one holds.
    loop {
        let mut best: Option<(u64, usize, usize)> = None;
        for (thing, ways) in things.iter().enumerate() {
            let now = ways[choice[thing]];
            for (way, cost) in ways.iter().enumerate() {
                let freed = now.bytes.saturating_sub(cost.bytes);
                if freed > 0 && left + cost.harm - now.harm <= harm && best.is_none_or(|(most, ..)| freed > most) {
                    best = Some((freed, thing, way));
                }
            }
        }
        let Some((_, thing, way)) = best else { return choice };
        left += things[thing][way].harm - things[thing][choice[thing]].harm;
        choice[thing] = way;
    }
}

/// A step of a thing to the next way on its hull.
struct Step {
    thing: usize,
    way: usize,
}

/// The steps from the smallest ways on, those that save the most a byte first. A thing's steps save less and less, so that they
/// stay in order.
fn steps(things: &[Vec<Cost>]) -> Vec<Step> {
    let mut steps: Vec<(f64, Step)> = Vec::new();
    for (thing, (ways, &first)) in things.iter().zip(&smallest(things)).enumerate() {
        let mut at = first;
        loop {
            let rate = |way: usize| (ways[at].harm - ways[way].harm) / (ways[way].bytes - ways[at].bytes) as f64;
            let larger =
                (0..ways.len()).filter(|way| ways[*way].bytes > ways[at].bytes && ways[*way].harm < ways[at].harm);
            // Of equal rates the longest step.
            let next = larger.max_by(|a, b| rate(*a).total_cmp(&rate(*b)).then(ways[*a].bytes.cmp(&ways[*b].bytes)));
            let Some(way) = next else { break };
            steps.push((rate(way), Step { thing, way }));
            at = way;
        }
    }
    // Stable: of equal rates the first thing's.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    steps.into_iter().map(|(_, step)| step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible things of a few ways, the more bytes the less harm, but for some.
    fn things(seed: u64, count: usize) -> Vec<Vec<Cost>> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        (0..count)
            .map(|_| {
                let (size, harm) = (10.0 + 90.0 * next(), next());
                (2..7)
                    .map(|bits| Cost {
                        bytes: (size * f64::from(bits)) as u64,
                        harm: harm * 4f64.powi(-bits) * (0.5 + next()),
                    })
                    .collect()
            })
            .collect()
    }

    /// All choices.
    fn all(things: &[Vec<Cost>]) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for ways in things {
            all = all
                .into_iter()
                .flat_map(|choice: Vec<usize>| (0..ways.len()).map(move |way| [&choice[..], &[way]].concat()))
                .collect();
        }
        all
    }

    #[test]
    fn little_is_lost_against_the_best_of_all_choices() {
        for seed in 0..40 {
            let things = things(seed, 5);
            let every = all(&things);
            let least = total(&things, &smallest(&things)).bytes;
            for share in [1.0, 1.3, 1.9, 2.5, 9.0] {
                let limit = (least as f64 * share) as u64;
                let found = total(&things, &within(&things, limit));
                let costs = every.iter().map(|choice| total(&things, choice));
                let best = costs.filter(|cost| cost.bytes <= limit).map(|cost| cost.harm).fold(f64::INFINITY, f64::min);
                assert!(found.bytes <= limit, "{seed} {share}");
                // Without one step that did not fit, no more than that step saves is lost.
                let most =
                    things.iter().map(|ways| ways.iter().map(|way| way.harm).fold(0.0, f64::max)).fold(0.0, f64::max);
                assert!(
                    found.harm >= best - 1e-15 && found.harm <= best + 0.5 * most,
                    "{seed} {share}: {} {best}",
                    found.harm
                );

                let found = total(&things, &for_harm(&things, best));
                let costs = every.iter().map(|choice| total(&things, choice));
                let fewest = costs.filter(|cost| cost.harm <= best).map(|cost| cost.bytes).min().unwrap();
                assert!(found.harm <= best * (1.0 + 1e-12), "{seed} {share}");
                assert!(
                    found.bytes >= fewest && found.bytes as f64 <= 1.3 * fewest as f64,
                    "{seed} {share}: {} {fewest}",
                    found.bytes
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_had_is_the_nearest_to_it() {
        let things = things(1, 4);
        assert_eq!(within(&things, 0), smallest(&things));
        let best = for_harm(&things, 0.0);
        let least: f64 = things.iter().map(|ways| ways.iter().map(|way| way.harm).fold(f64::INFINITY, f64::min)).sum();
        assert_eq!(total(&things, &best).harm, least);
        assert!(within(&[], 10).is_empty());
    }
}
