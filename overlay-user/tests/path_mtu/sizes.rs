//! Packets of every size around the edge.
use super::bed::*;

#[test]
fn explore() {
    for (name, carrier) in [("ours", Carrier::Ours(&[])), ("df", Carrier::Ours(&["--outer-df"])), ("flannel", Carrier::Flannel)] {
        let t = std::time::Instant::now();
        let bed = Bed::new(carrier, VXLAN, false);
        println!("{name} built in {:?}", t.elapsed());
        for route in [Route::Silent, Route::Plain, Route::Locked] {
            bed.set_routes(route);
            for index in [1, 2] {
                for df in [true, false] {
                    let inner = bed.inner(index);
                    let sizes = [inner - 1, inner, inner + 1, inner + 2, 1449, 1450, 1451, 1500];
                    let fates: Vec<_> = sizes.map(|size| (size, probe(&bed.wide[0], bed.wide[index].address(), size, df))).to_vec();
                    println!("{name} {route:?} {index} df {df}: {fates:?}");
                }
            }
        }
        println!("{:?}", t.elapsed());
        for member in &bed.members { println!("{:?}", member.counters().unwrap()); }
    }
}
