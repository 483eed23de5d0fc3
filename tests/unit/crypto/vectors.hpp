// Reads the files of tests/vectors: blocks of "NAME = hex" or "NAME = number" lines, one block a vector.
#pragma once

#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "crypto/secret.hpp"

namespace coffer::tests {

class Vector {
public:
    void set(std::string name, std::string value) { m_fields[std::move(name)] = std::move(value); }
    bool empty() const { return m_fields.empty(); }
    uint64_t number(std::string const& name) const { return std::stoull(m_fields.at(name)); }
    ByteVector bytes(std::string const& name) const {
        auto const& hex = m_fields.at(name);
        if (hex.size() % 2 != 0) throw std::runtime_error("odd number of hex digits");
        ByteVector result;
        for (size_t i = 0; i < hex.size(); i += 2)
            result.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
        return result;
    }
    crypto::SecretBytes secret(std::string const& name) const { return crypto::SecretBytes::copy_of(bytes(name)); }

private:
    std::map<std::string, std::string> m_fields;
};

inline std::vector<Vector> read_vectors(std::string const& name) {
    std::ifstream file(std::string(COFFER_VECTORS) + "/" + name);
    if (!file) throw std::runtime_error("no vector file " + name);
    std::vector<Vector> vectors;
    Vector current;
    auto finish = [&] {
        if (!current.empty()) vectors.push_back(std::exchange(current, {}));
    };
    for (std::string line; std::getline(file, line);) {
        auto sign = line.find(" =");
        if (line.empty())
            finish();
        else if (line[0] != '#' && sign != std::string::npos)
            current.set(line.substr(0, sign), line.size() > sign + 3 ? line.substr(sign + 3) : "");
    }
    finish();
    if (vectors.empty()) throw std::runtime_error("no vectors in " + name);
    return vectors;
}

inline ByteVector to_vector(Bytes bytes) {
    return {bytes.begin(), bytes.end()};
}

} // namespace coffer::tests
