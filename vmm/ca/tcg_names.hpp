// Names as the TCG's certificate profiles write them: a directoryName among GeneralNames (RFC 5280, 4.2.1.6) whose
// attributes stand one in a relative name, as UTF8String.
#pragma once

#include <initializer_list>
#include <string>

#include "crypto/der.hpp"

namespace coffer::vmm {

struct NameAttribute {
    std::string_view oid;
    std::string value;
};

// A GeneralName.
inline ByteVector directory_name(std::initializer_list<NameAttribute> attributes) {
    namespace der = crypto::der;
    ByteVector names;
    for (auto const& attribute : attributes)
        append(names, der::set_of({der::sequence({der::oid(attribute.oid), der::utf8(attribute.value)})}));
    return der::element(der::constructed(4), der::element(der::Sequence, names));
}

} // namespace coffer::vmm
